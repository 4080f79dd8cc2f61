"""A run: its plan and its report, read from and written to an output folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..core.json_files import read_json, write_json
from ..errors import SourceError
from .files import PLAN_FILE, REPORT_FILE, read_schema
from .migration import migrate_plan
from .plan import Plan
from .report import Report


@dataclass(frozen=True)
class Run:
    """How the model in an output folder was made, and what was measured.

    Args:
        plan: What was cut; None where the folder has no plan.
        report: What was measured, and what compensation and recovery did.
    """

    plan: Plan | None
    report: Report

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read the plan and the report of an output folder, of this schema or an older one.

        Args:
            folder: An output folder.

        Raises:
            SourceError: It has no report; or the plan or the report is damaged, or was written by a later version.
        """
        data = read_json(folder / REPORT_FILE)
        plan = read_plan(folder)
        if plan is not None and isinstance(data, dict):
            schema, values = read_schema(read_json(folder / PLAN_FILE), "plan")
            if schema == 1:
                _, later = migrate_plan(values)
                data = {**data, **{key: value for key, value in later.items() if data.get(key) is None}}
        try:
            return cls(plan, Report.from_json(data))
        except SourceError as error:
            raise SourceError(f"{folder / REPORT_FILE}: {error}") from None

    def write(self, folder: Path) -> None:
        """Write the report of an output folder, and the plan where there is one.

        Args:
            folder: An existing folder.
        """
        if self.plan is not None:
            write_json(folder / PLAN_FILE, self.plan.to_json())
        write_json(folder / REPORT_FILE, self.report.to_json())


def read_plan(folder: Path) -> Plan | None:
    """Return the plan of an output folder; None where it has none.

    Args:
        folder: Any folder.

    Raises:
        SourceError: It is damaged, or a later version wrote it.
    """
    if not (folder / PLAN_FILE).is_file():
        return None
    data = read_json(folder / PLAN_FILE)
    try:
        return Plan.from_json(data)
    except SourceError as error:
        raise SourceError(f"{folder / PLAN_FILE}: {error}") from None


def has_run(folder: Path) -> bool:
    """Return whether a folder has both a plan and a report.

    Args:
        folder: Any folder.
    """
    return (folder / PLAN_FILE).is_file() and (folder / REPORT_FILE).is_file()


def read_run(folder: Path) -> tuple[Plan | None, Report | None]:
    """Return the plan and the report of a folder, each None where the folder lacks it.

    Args:
        folder: Any folder.

    Raises:
        SourceError: One of them is damaged, or was written by a later version.
    """
    if (folder / REPORT_FILE).is_file():
        run = Run.read(folder)
        return run.plan, run.report
    return read_plan(folder), None
