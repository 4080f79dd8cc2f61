"""What has been measured so far, on disk: an interrupted analysis resumes where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..core.json_codec import from_plain, to_plain
from ..core.json_files import read_json, write_json
from ..core.progress import note
from ..errors import OutputError, SourceError
from ..report.analysis import LayerSensitivity, SparsityLevel
from ..report.files import ANALYSIS_FILE, ANALYSIS_SCHEMA
from ..report.scores import read_scores, write_scores

_INPUTS = "inputs.safetensors"


class State:
    """The measurements of one request, each written as soon as it exists.

    Args:
        folder: Where they are stored; None holds them in memory alone.
        request: All that they depend on, as plain values. What is on disk is used only when its request is the same.
    """

    def __init__(self, folder: Path | None, request: Mapping[str, Any]) -> None:
        self.folder = folder
        self.request = json.loads(json.dumps(request))
        self.levels: dict[tuple[str, float], SparsityLevel] = {}
        self.layers: dict[int, LayerSensitivity] = {}
        self.inputs: dict[str, torch.Tensor] = {}
        if folder is not None and (folder / ANALYSIS_FILE).exists():
            self._read(folder)

    @property
    def count(self) -> int:
        """Number of finished measurements."""
        return len(self.levels) + len(self.layers)

    @property
    def is_stored(self) -> bool:
        """Whether anything is on disk."""
        return self.folder is not None and (self.folder / ANALYSIS_FILE).exists()

    def _read(self, folder: Path) -> None:
        """Read the stored measurements of the same request; a note says why others are not used."""
        try:
            data = read_json(folder / ANALYSIS_FILE)
            if (
                not isinstance(data, dict)
                or data.get("schema") != ANALYSIS_SCHEMA
                or not isinstance(data.get("request"), dict)
            ):
                raise SourceError("it was written by another version")
            found = data["request"]
            changed = sorted(key for key in {*found, *self.request} if found.get(key) != self.request.get(key))
            if changed:
                raise SourceError(f"the request differs ({', '.join(changed)})")
            inputs = read_scores(folder / _INPUTS) if (folder / _INPUTS).exists() else {}
            levels = [from_plain(SparsityLevel, entry, kind="analysis") for entry in data["levels"]]
            layers = [from_plain(LayerSensitivity, entry, kind="analysis") for entry in data["layers"]]
        except (SourceError, SafetensorError, OSError, KeyError, TypeError) as error:
            reason = "it was written by another version" if isinstance(error, (KeyError, TypeError)) else str(error)
            reason = " ".join(reason.split())
            note(f"starting over: the unfinished analysis in {folder} cannot be resumed: {reason}")
            self.remove()
            return
        self.inputs = inputs
        self.levels = {(level.kind, level.sparsity): level for level in levels}
        self.layers = {layer.layer: layer for layer in layers}

    def store_inputs(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Store what every measurement starts from: the scores, and the windows to measure on."""
        self.inputs = dict(inputs)
        self._write_json()
        self._write(_INPUTS, lambda path: write_scores(inputs, path))

    def add_level(self, level: SparsityLevel) -> None:
        """Store one level of one kind."""
        self.levels[(level.kind, level.sparsity)] = level
        self._write_json()

    def add_layer(self, layer: LayerSensitivity) -> None:
        """Store one layer."""
        self.layers[layer.layer] = layer
        self._write_json()

    def _write_json(self) -> None:
        levels = [to_plain(level) for level in self.levels.values()]
        layers = [to_plain(layer) for layer in self.layers.values()]
        data = {"schema": ANALYSIS_SCHEMA, "request": self.request, "levels": levels, "layers": layers}
        self._write(ANALYSIS_FILE, lambda path: write_json(path, data))

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        """Let a function write a file that is whole at any time."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(self.folder / name)
        except OSError as error:
            raise OutputError(f"cannot write in {self.folder}: {os.strerror(error.errno or 0)}") from None

    def remove(self) -> None:
        """Remove what was stored on disk: this package's own files, and the folder when nothing else is in it."""
        if self.folder is not None:
            for name in (ANALYSIS_FILE, _INPUTS):
                (self.folder / name).unlink(missing_ok=True)
                for partial in self.folder.glob(f".{name}.*.partial"):  # a run was killed while it wrote
                    partial.unlink(missing_ok=True)
            with suppress(OSError):  # someone else's files are in it
                self.folder.rmdir()
