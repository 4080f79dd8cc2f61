"""Reading the reports of output folders, each under a unique name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.json_files import read_json
from ...errors import RequestError, SourceError
from ..files import REPORT_FILE
from ..plan import Plan
from ..report import Report
from ..run import Run


@dataclass(frozen=True)
class NamedReport:
    """The report and plan of one output folder, with its name in the page.

    Args:
        label: The folder's name, with as much of its path as distinguishes it from the others.
        report: What was measured.
        plan: How it was cut, or None where the folder has no plan.
    """

    label: str
    report: Report
    plan: Plan | None = None


def read_reports(paths: Sequence[Path]) -> tuple[NamedReport, ...]:
    """Read output folders, or files with the output of `ishrink evaluate --json`.

    Args:
        paths: Folders and files.

    Raises:
        RequestError: A path is given twice.
        SourceError: A path has no readable report.
    """
    resolved = [path.expanduser().resolve() for path in paths]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise RequestError(f"{paths[number]} is given twice")
    return tuple(
        NamedReport(label, *_read(path, given))
        for label, path, given in zip(_labels(resolved), resolved, paths, strict=True)
    )


def _read(path: Path, given: Path) -> tuple[Report, Plan | None]:
    if path.is_dir() and not (path / REPORT_FILE).is_file():
        raise SourceError(f"{given} is not an output folder of shrink or recover: it has no {REPORT_FILE}")
    if not path.exists():
        raise SourceError(f"{given} does not exist; name output folders of shrink or recover")
    try:
        if path.is_dir():
            run = Run.read(path)
            return run.report, run.plan
        return Report.from_json(read_json(path)), None
    except SourceError as error:
        reason = str(error)
        raise SourceError(reason if str(given) in reason else f"{given}: {reason}") from None


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest unique ends of the paths."""

    def end(path: Path, parts: int) -> str:
        stem = path.with_suffix("") if path.is_file() else path
        return "/".join(stem.parts[-parts:])

    labels = []
    for path in paths:
        parts = 1
        while parts < len(path.parts) and sum(end(other, parts) == end(path, parts) for other in paths) > 1:
            parts += 1
        labels.append(end(path, parts))
    return labels
