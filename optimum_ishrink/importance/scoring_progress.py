"""What a sweep over layers has finished, on disk: a killed run resumes from there, to the same scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.durable import load_tensors, replace_file, save_tensors
from ..core.paging import spool_of
from ..core.spool import OnDisk, States
from .watchers import Watcher


class ScoringProgress:
    """The progress of one sweep. Nothing is stored where the folder does not outlive the run.

    Args:
        model: The model that is swept.
        watchers: The watchers of the sweep.
    """

    def __init__(self, model: Any, watchers: Sequence[Watcher]) -> None:
        spool = spool_of(model)
        self._folder: Path | None = spool.folder if spool is not None and spool.outlives else None
        names = (f"{watcher.criterion.name}-{'-'.join(watcher.units.keys)}" for watcher in watchers)
        self._name = "scoring-" + "+".join(names)

    def _file(self, ending: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._name}.{ending}"

    def _read(self, ending: str) -> Any:
        if self._folder is None or not self._file(ending).is_file():
            return None
        return json.loads(self._file(ending).read_text(encoding="utf-8"))

    def _replace(self, ending: str, data: Any) -> None:
        replace_file(self._file(ending), json.dumps(data).encode())

    def read(self, watchers: Sequence[Watcher]) -> tuple[int, States] | None:
        """Return how many layers are finished, and the states after them; None where none is.

        Args:
            watchers: The watchers of the sweep.
        """
        found = self._read("json")
        if found is None or len(found["terms"]) != len(watchers):
            return None
        assert self._folder is not None
        return found["layers"], OnDisk.reopen(self._folder, found["states"])

    def restore(self, watchers: Sequence[Watcher]) -> None:
        """Give watchers, once they are installed, the sums that they had.

        Args:
            watchers: The watchers of the sweep.
        """
        self._restore("json", watchers)

    def write(self, watchers: Sequence[Watcher], layers: int, states: States) -> None:
        """Store that layers are finished.

        Args:
            watchers: The watchers, with their sums.
            layers: Number of finished layers.
            states: What the next layer needs.
        """
        if self._folder is None or not isinstance(states, OnDisk):
            return
        before = self._read("json")
        found = self._save(str(layers), watchers)
        self._replace("json", {**found, "layers": layers, "states": states.keep()})
        if before is not None:
            (self._folder / before["sums"]).unlink(missing_ok=True)
            (self._folder / before["states"]["file"]).unlink(missing_ok=True)

    def read_entering(self) -> list[States]:
        """Return what left the layers that have run forward."""
        found = self._read("entering.json")
        if found is None:
            return []
        assert self._folder is not None
        return [OnDisk.reopen(self._folder, kept) for kept in found["states"]]

    def restore_entering(self, riders: Sequence[Watcher]) -> None:
        """Give watchers of the forward pass, once they are installed, the sums that they had.

        Args:
            riders: The watchers.
        """
        self._restore("entering.json", riders)

    def write_entering(self, states: Sequence[States], riders: Sequence[Watcher]) -> None:
        """Store what left the layers that have run forward.

        Args:
            states: One sequence per layer.
            riders: The watchers of the forward pass, with their sums.
        """
        if self._folder is None:
            return
        before = self._read("entering.json")
        kept = [each.keep() for each in states if isinstance(each, OnDisk)]
        found = self._save(f"entering.{len(kept)}", riders)
        self._replace("entering.json", {**found, "states": kept})
        if before is not None:
            (self._folder / before["sums"]).unlink(missing_ok=True)

    def drop_entering(self) -> None:
        """Remove what left the layers: all of them have run backward, and it takes far more room than the sums."""
        found = self._read("entering.json")
        if self._folder is None or found is None:
            return
        self._replace("entering.json", {**found, "states": []})
        for kept in found["states"]:
            (self._folder / kept["file"]).unlink(missing_ok=True)

    def _save(self, ending: str, watchers: Sequence[Watcher]) -> dict[str, Any]:
        """Store the sums of watchers, and return where they are."""
        assert self._folder is not None
        name = f"{self._name}.{ending}.safetensors"
        running = {
            f"{number}.{key}": tensor
            for number, watcher in enumerate(watchers)
            for key, tensor in watcher.running().items()
        }
        save_tensors(self._folder / name, running)
        return {"sums": name, "terms": [watcher.terms for watcher in watchers]}

    def _restore(self, ending: str, watchers: Sequence[Watcher]) -> None:
        assert self._folder is not None
        found = self._read(ending)
        tensors = load_tensors(self._folder / found["sums"])
        for number, watcher in enumerate(watchers):
            watcher.terms = found["terms"][number]
            for name, sums in watcher.running().items():
                sums.copy_(tensors[f"{number}.{name}"])
