"""Adding later measurements to the report of an output folder, and to its card."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import reduce
from pathlib import Path

from ..checkpoint.source import Source
from ..core.progress import note
from ..errors import OutputError
from ..report.files import REPORT_FILE
from ..report.merge import merge_reports
from ..report.origin import Origin
from ..report.report import Report
from ..report.run import Run, has_run
from .build import build_card


def can_update(folder: Path, base: Source, base_model: str | None) -> bool:
    """Return whether measurements against a base belong in a folder's report; if not, a note says why.

    Args:
        folder: The folder of the measured model.
        base: The model that it is compared with.
        base_model: Hub id of a base that is read from a folder, or None.

    Raises:
        OutputError: They belong in the report, but the folder is not writable.
        SourceError: The folder's plan or report cannot be read.
    """
    if not has_run(folder):
        return False
    reason = _other_base(Run.read(folder), base, base_model)
    if reason is not None:
        note(f"the report in {folder} is not updated: {reason}")
        return False
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"no permission to write in {folder}, whose report these measurements are for; "
            "pass --no-update-report (update_report=False) to leave it as it is"
        )
    return True


def _other_base(run: Run, base: Source, base_model: str | None) -> str | None:
    """Return why a model is not the base of a plan, or None when it is."""
    plan, binding = run.plan, base.binding
    assert plan is not None
    same_shape = (
        all(binding.shape.get(key) == size for key, size in plan.shape.items())
        and binding.num_parameters() == plan.num_parameters
    )
    if not same_shape or binding.description.model_type != plan.model_type:
        return "the base has a different shape from the model that the plan was made for"
    if plan.revision and base.revision and plan.revision != base.revision:
        return f"the base is at revision {base.revision[:12]}, and the plan was made for {plan.revision[:12]}"
    planned = {plan.model, (run.report.origin or Origin()).base_model} - {None}
    if not planned & {base.display_name, base_model}:
        return (
            f"the plan was made for {plan.model}, and the base is named {base_model or base.display_name}; "
            f"if it is the same model, pass --base-model {plan.model} (base_model=)"
        )
    return None


def update_report(folder: Path, *found: Report, known: Report | None = None) -> Report:
    """Add measurements to the report of an output folder, and rebuild its card.

    Args:
        folder: The output folder.
        *found: The new measurements; the last ones win.
        known: What they are added to; the folder's report when None.

    Returns:
        The merged report.
    """
    run = Run.read(folder)
    merged = reduce(merge_reports, found, known or run.report)
    try:
        replace(run, report=merged).write(folder)
        build_card(folder)
    except OSError as error:
        raise OutputError(f"cannot write in {folder}: {os.strerror(error.errno or 0)}") from None
    note(f"added to {folder / REPORT_FILE} and its card")
    return merged
