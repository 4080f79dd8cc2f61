"""Weight files that a run has finished, linked to where a killed run finds them again."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from ..report.plan import Plan

_COMPARED = "compared"


def plan_mark(plan: Plan) -> str:
    """Return a short hash of what a plan retains: what was cut by another is of no use.

    Args:
        plan: The plan.
    """
    retained = repr((plan.layers, plan.units, plan.merges, plan.expert_merges, sorted(plan.new_shape.items())))
    return hashlib.sha256(retained.encode()).hexdigest()[:12]


class WrittenShards:
    """The weight files of one cut. A file has a second name here as soon as it is whole.

    Where the folder is on another disk than the output, no file has, and each is written again.

    Args:
        folder: An existing folder, which outlives the run.
        mark: What tells this plan from others.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self._folder = folder / f"shards-{mark}"
        self._folder.mkdir(exist_ok=True)

    def take(self, output: Path) -> frozenset[str]:
        """Link the files that are whole into an output folder, and return their names.

        Args:
            output: The folder that is written.
        """
        found = set()
        for path in sorted(self._folder.glob("*.safetensors")):
            with suppress(OSError):
                os.link(path, output / path.name)
                found.add(path.name)
        return frozenset(found)

    def store(self, path: Path) -> None:
        """Give a file that is whole its second name.

        Args:
            path: The file.
        """
        with suppress(OSError):  # another disk, or one without links: it is written again
            os.link(path, self._folder / path.name)

    @property
    def compared(self) -> bool:
        """Whether the files were compared with what was to be written. Compensation writes into them after that."""
        return (self._folder / _COMPARED).is_file()

    @compared.setter
    def compared(self, value: bool) -> None:
        if value:
            (self._folder / _COMPARED).touch()
