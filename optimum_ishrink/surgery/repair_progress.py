"""What compensation has finished, on disk: a killed run resumes after the last repaired layer, to the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..core.durable import load_tensors, replace_file, save_tensors
from ..core.spool import OnDisk, States
from ..report.compensation import ProjectionRepair


class Finished(NamedTuple):
    """Where a killed run was.

    Args:
        layers: Number of repaired layers of the result.
        reference: The base's hidden states after them.
        current: Those of the cut model.
        repairs: What became of each projection so far.
        memory: What the search for a ridge starts from in the next layer.
    """

    layers: int
    reference: States
    current: States
    repairs: list[ProjectionRepair]
    memory: dict[str, Any]


class RepairProgress:
    """The progress of one compensation.

    Args:
        folder: An existing folder, which outlives the run.
        mark: What tells this plan from others.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self._folder = folder
        self._name = f"repair-{mark}"
        self._weights: dict[str, torch.Tensor] = {}

    @property
    def _file(self) -> Path:
        return self._folder / f"{self._name}.json"

    def _found(self) -> Any:
        return json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else None

    def log(self, name: str, weight: torch.Tensor) -> None:
        """Remember a new weight until its layer is finished.

        Args:
            name: Its name in the checkpoint.
            weight: Its values, as they are stored.
        """
        self._weights[name] = weight

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the new weights of the finished layers."""
        found = self._found()
        for layer in range(1, 0 if found is None else found["layers"] + 1):
            yield from load_tensors(self._folder / f"{self._name}.{layer}.safetensors").items()

    def read(self) -> Finished | None:
        """Return where a killed run was; None where it had not finished a layer."""
        found = self._found()
        if found is None:
            return None
        reference = OnDisk.reopen(self._folder, found["reference"])
        same = found["current"] is None
        current = reference if same else OnDisk.reopen(self._folder, found["current"])
        repairs = [ProjectionRepair(**each) for each in found["repairs"]]
        return Finished(found["layers"], reference, current, repairs, found["memory"])

    def write(self, finished: Finished) -> None:
        """Store that one more layer is finished.

        Args:
            finished: Where the run is.
        """
        if not isinstance(finished.reference, OnDisk) or not isinstance(finished.current, OnDisk):
            return
        before = self._found()
        save_tensors(self._folder / f"{self._name}.{finished.layers}.safetensors", self._weights)
        self._weights = {}
        same = finished.current is finished.reference
        data = {
            "layers": finished.layers,
            "reference": finished.reference.keep(),
            "current": None if same else finished.current.keep(),
            "repairs": [asdict(each) for each in finished.repairs],
            "memory": finished.memory,
        }
        replace_file(self._file, json.dumps(data).encode())
        for kept in () if before is None else (before["reference"], before["current"]):
            if kept is not None and kept["file"] not in _files(data["reference"], data["current"]):
                (self._folder / kept["file"]).unlink(missing_ok=True)


def _files(*kept: Any) -> Sequence[str]:
    return [each["file"] for each in kept if each is not None]
