"""The reports of output folders, each under a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.json_files import read_json
from ...errors import RequestError, SourceError
from ..files import PLAN_FILE, REPORT_FILE
from ..plan import Plan
from ..report import Report


@dataclass(frozen=True)
class Measured:
    """One output folder as the page knows it.

    Args:
        label: The folder's name, with as much of its path as tells it from the others.
        report: What was measured.
        plan: How it was cut, or None where the folder does not say.
    """

    label: str
    report: Report
    plan: Plan | None = None


def read_reports(paths: Sequence[Path]) -> tuple[Measured, ...]:
    """Read output folders, or files that `ishrink evaluate --json` was written to.

    Args:
        paths: Folders and files.

    Raises:
        RequestError: A path is given twice.
        SourceError: One holds no report.
    """
    resolved = [path.expanduser().resolve() for path in paths]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise RequestError(f"{paths[number]} is given twice")
    return tuple(
        Measured(label, *_read(path, given))
        for label, path, given in zip(_labels(resolved), resolved, paths, strict=True)
    )


def _read(path: Path, given: Path) -> tuple[Report, Plan | None]:
    if path.is_dir() and not (path / REPORT_FILE).is_file():
        raise SourceError(f"{given} is no output folder of shrink or recover: it has no {REPORT_FILE}")
    if not path.exists():
        raise SourceError(f"{given} does not exist; name output folders of shrink or recover")
    plan = path / PLAN_FILE
    data = read_json(path / REPORT_FILE if path.is_dir() else path)
    try:
        return Report.from_json(data), Plan.from_json(read_json(plan)) if plan.is_file() else None
    except SourceError as error:
        raise SourceError(f"{given}: {error}") from None
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise SourceError(
            f"{given} holds a report or plan that is damaged ({type(error).__name__}: {error})"
        ) from None


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""

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
