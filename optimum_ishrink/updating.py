"""Adding what is measured later to the report of an output folder, and to its card."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .artifacts import PLAN_FILE, REPORT_FILE, Measurement, ModelReport, Plan, Report, read_json, write_json
from .card import build_card
from .configuration import IShrinkConfig
from .errors import OutputError
from .progress import note
from .source import Source


def can_update(folder: Path, base: Source, config: IShrinkConfig) -> bool:
    """Whether measurements of a folder beside a base belong into its report; where not, and it has one, say why.

    Args:
        folder: The model that is measured.
        base: What it is measured against.
        config: The run's config; its `base_model` is another name for the base.

    Raises:
        OutputError: They belong there, and the folder cannot be written in.
        SourceError: The folder's plan or report cannot be read.
    """
    if not (folder / PLAN_FILE).is_file() or not (folder / REPORT_FILE).is_file():
        return False
    plan = Plan.from_json(read_json(folder / PLAN_FILE))
    Report.from_json(read_json(folder / REPORT_FILE))
    reason = _other_base(plan, base, config)
    if reason is not None:
        note(f"the report in {folder} stays as it is: {reason}")
        return False
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"no permission to write in {folder}, whose report these measurements belong into; "
            "pass --no-update-report to print them only"
        )
    return True


def _other_base(plan: Plan, base: Source, config: IShrinkConfig) -> str | None:
    """Return why a model is not the base that a plan names, or None when it is."""
    binding = base.binding
    same_shape = dict(binding.shape) == dict(plan.shape) and binding.num_parameters() == plan.num_parameters
    if not same_shape or binding.description.model_type != plan.model_type:
        return "the base has another shape than the model that the plan was made for"
    if plan.revision and base.revision and plan.revision != base.revision:
        return f"the base is at revision {base.revision[:12]}, and the plan was made for {plan.revision[:12]}"
    planned = {plan.model, plan.settings.get("origin", {}).get("base_model")} - {None}
    if not planned & {base.display_name, config.base_model}:
        return (
            f"the plan was made for {plan.model}, and the base is called {config.base_model or base.display_name}; "
            f"if it is the same model, say so: --base-model {plan.model}"
        )
    return None


def update_report(folder: Path, found: Report) -> Report:
    """Add measurements to the report of an output folder, and build its card anew.

    Args:
        folder: The output folder.
        found: What was measured.

    Returns:
        The whole report.
    """
    merged = merge_reports(Report.from_json(read_json(folder / REPORT_FILE)), found)
    try:
        write_json(folder / REPORT_FILE, merged.to_json())
        build_card(folder)
    except OSError as error:
        raise OutputError(f"cannot write in {folder}: {os.strerror(error.errno or 0)}") from None
    return merged


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
