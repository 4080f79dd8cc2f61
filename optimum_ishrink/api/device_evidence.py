"""What a device measured, added to the evidence of the model that it ran."""

from __future__ import annotations

import os
from pathlib import Path

from ..app.device_figures import device_evidence, without_device
from ..app.device_report import DeviceReport, read_device_report
from ..card.update import update_report
from ..core.progress import note
from ..errors import OutputError, RequestError, SourceError
from ..report.files import PLAN_FILE
from ..report.report import Report
from ..report.run import Run


def add_device_reports(folder: str | Path, paths: list[Path]) -> Report:
    """Add reports of devices to the report and the card of an output folder.

    Figures of a device of the same name replace those that it measured before. The verdicts are computed here.

    Args:
        folder: The output folder.
        paths: The reports, as the page saved them.

    Returns:
        The merged report.

    Raises:
        RequestError: No report is given, or several of one device.
        SourceError: A report of a device is damaged, or the folder holds none of a run.
        OutputError: The folder is not writable.
    """
    place = Path(folder).expanduser()
    if not paths:
        raise RequestError("name the report of a device that the page saved")
    found = [read_device_report(path.expanduser()) for path in paths]  # all are read before the first is added
    labels = [each.label for each in found]
    if len(set(labels)) < len(labels):
        raise RequestError(
            f"several reports are of {max(labels, key=labels.count)}, and their figures would replace one another; "
            "give the devices names on the page, or pass one report"
        )
    run = Run.read(place)
    if run.plan is None:
        raise SourceError(f"{place / PLAN_FILE} does not exist; name the output folder of shrink or recover")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write in {place}, whose report these measurements are for")
    for each in found:
        _say_what(each)
    known = run.report
    for each in found:
        known = without_device(known, each)
    evidence = (device_evidence(each, run.report, run.plan.num_parameters) for each in found)
    return update_report(place, *evidence, known=known)


def _say_what(report: DeviceReport) -> None:
    """Say which files were timed: no file tells which checkpoint it was exported from."""
    for model in report.models:
        note(
            f"{report.label} ran {model.file} ({model.bytes:,} bytes, {model.quantization}) as the {model.role} model"
        )
    for line in report.notes:
        note(f"{report.label}: {line}")
