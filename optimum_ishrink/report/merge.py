"""Adding later measurements to a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .measurement import Measurement
from .report import ModelReport, Report


def merge_reports(old: Report, new: Report) -> Report:
    """Return a report with another's measurements added.

    A measurement of the same metric on the same data is replaced, for base and shrunk model alike; the others are
    retained. A measurement made in a different environment from the old report's has that environment in its settings.

    Args:
        old: The existing report.
        new: The report with the new measurements.
    """
    elsewhere = new.environment != old.environment

    def with_place(entries: Sequence[Measurement]) -> tuple[Measurement, ...]:
        return tuple(entry.with_environment(new.environment) if elsewhere else entry for entry in entries)

    def merged(before: ModelReport, after: ModelReport) -> ModelReport:
        quality = _merge(before.quality, with_place(after.quality))
        return replace(before, quality=quality, speed=_merge(before.speed, with_place(after.speed)))

    # A report without a base takes parameters and bytes of the new one, and no old measurements.
    base = old.base if new.base is None else merged(old.base or replace(new.base, quality=(), speed=()), new.base)
    shrunk = merged(old.shrunk, new.shrunk)
    replaced = {(entry.metric, entry.dataset) for entry in (*new.shrunk.quality, *new.shrunk.speed)}
    retained = tuple(entry for entry in old.comparisons if (entry.metric, entry.dataset) not in replaced)
    measured = {entry.dataset for entry in new.shrunk.quality}
    remaining = {failure.dataset: failure for failure in old.failures if failure.dataset not in measured}
    failures = {**remaining, **{failure.dataset: failure for failure in new.failures}}
    return replace(
        old,
        base=base,
        shrunk=shrunk,
        comparisons=(*retained, *new.comparisons),
        samples=new.samples or old.samples,
        failures=tuple(failures.values()),
    )


def _merge(old: Sequence[Measurement], new: Sequence[Measurement]) -> tuple[Measurement, ...]:
    found = {(entry.metric, entry.dataset): entry for entry in old}
    found.update({(entry.metric, entry.dataset): entry for entry in new})
    return tuple(found.values())
