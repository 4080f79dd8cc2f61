"""Adding what is measured later to the report of an output folder, and to its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .measurement import Measurement
from .report import ModelReport, Report


def merge_reports(old: Report, new: Report) -> Report:
    """Return a report with another's measurements added.

    A measurement of the same metric on the same data is replaced, in base and shrunk model alike; others stay. What
    was measured in another environment than the old report's says so in its settings.

    Args:
        old: The report that there is.
        new: What was measured since.
    """
    moved = dict(new.environment) != dict(old.environment)
    also = {"environment": dict(new.environment)} if moved else {}

    def marked(entries: Sequence[Measurement]) -> tuple[Measurement, ...]:
        return tuple(replace(entry, settings={**entry.settings, **also}) for entry in entries)

    def merged(before: ModelReport, after: ModelReport) -> ModelReport:
        quality = _merge(before.quality, marked(after.quality))
        return replace(before, quality=quality, speed=_merge(before.speed, marked(after.speed)))

    # A report without a base has only parameters and bytes to add it to.
    base = old.base if new.base is None else merged(old.base or replace(new.base, quality=(), speed=()), new.base)
    shrunk = merged(old.shrunk, new.shrunk)
    anew = {(entry.metric, entry.dataset) for entry in (*new.shrunk.quality, *new.shrunk.speed)}
    kept = tuple(entry for entry in old.comparisons if (entry.metric, entry.dataset) not in anew)
    there = {entry.dataset for entry in shrunk.quality}
    failures = {failure.dataset: failure for failure in (*old.failures, *new.failures)}
    return replace(
        old,
        base=base,
        shrunk=shrunk,
        comparisons=(*kept, *new.comparisons),
        samples=new.samples or old.samples,
        failures=tuple(failure for name, failure in failures.items() if name not in there),
    )


def _merge(old: Sequence[Measurement], new: Sequence[Measurement]) -> tuple[Measurement, ...]:
    found = {(entry.metric, entry.dataset): entry for entry in old}
    found.update({(entry.metric, entry.dataset): entry for entry in new})
    return tuple(found.values())
