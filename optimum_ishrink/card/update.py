"""Adding what is measured later to the report of an output folder, and to its card."""

from __future__ import annotations

import os
from pathlib import Path

from ..checkpoint.source import Source
from ..configuration import IShrinkConfig
from ..core.json_files import read_json, write_json
from ..core.progress import note
from ..errors import OutputError
from ..report.files import PLAN_FILE, REPORT_FILE
from ..report.merge import merge_reports
from ..report.plan import Plan
from ..report.report import Report
from .build import build_card


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
