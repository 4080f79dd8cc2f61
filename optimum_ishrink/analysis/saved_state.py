"""What has been measured so far, on disk: an interrupted analysis goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..core.json_files import read_json, write_json
from ..core.progress import note
from ..errors import OutputError, SourceError
from ..report.files import ANALYSIS_FILE, SCHEMA
from ..report.scores import read_scores, write_scores
from .record import LayerSensitivity, SparsityLevel

_INPUTS = "inputs.safetensors"


class State:
    """The measurements of one request, each written as soon as it is there.

    Args:
        folder: Where they are kept; None keeps them in memory alone.
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
    def is_kept(self) -> bool:
        """Whether anything is on disk."""
        return self.folder is not None and (self.folder / ANALYSIS_FILE).exists()

    def _read(self, folder: Path) -> None:
        """Take over what is there, if it is of the same request; otherwise say why not."""
        try:
            data = read_json(folder / ANALYSIS_FILE)
            if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("request"), dict):
                raise SourceError("it was written by another version")
            found = data["request"]
            changed = sorted(key for key in {*found, *self.request} if found.get(key) != self.request.get(key))
            if changed:
                raise SourceError(f"it was asked for otherwise ({', '.join(changed)})")
            inputs = read_scores(folder / _INPUTS) if (folder / _INPUTS).exists() else {}
            levels = [SparsityLevel.from_dict(entry) for entry in data["levels"]]
            layers = [LayerSensitivity.from_dict(entry) for entry in data["layers"]]
        except (SourceError, SafetensorError, OSError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            note(f"starting anew: the unfinished analysis in {folder} cannot be gone on with: {reason}")
            self.remove()
            return
        self.inputs = inputs
        self.levels = {(level.kind, level.sparsity): level for level in levels}
        self.layers = {layer.layer: layer for layer in layers}

    def keep_inputs(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Keep what every measurement starts from: the scores, and the windows to measure on."""
        self.inputs = dict(inputs)
        if self.folder is not None:
            self._write_json()
            self._replace(_INPUTS, lambda path: write_scores(inputs, path))

    def add_level(self, level: SparsityLevel) -> None:
        """Keep one level of one kind."""
        self.levels[(level.kind, level.sparsity)] = level
        self._write_json()

    def add_layer(self, layer: LayerSensitivity) -> None:
        """Keep one layer."""
        self.layers[layer.layer] = layer
        self._write_json()

    def _write_json(self) -> None:
        if self.folder is not None:
            levels = [asdict(level) for level in self.levels.values()]
            layers = [asdict(layer) for layer in self.layers.values()]
            data = {"schema": SCHEMA, "request": self.request, "levels": levels, "layers": layers}
            self._replace(ANALYSIS_FILE, lambda path: write_json(path, data))

    def _replace(self, name: str, write: Any) -> None:
        """Write a file beside its place, then rename it: at any time there is a whole one."""
        assert self.folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            new = self.folder / f".{name}.new"
            write(new)
            new.replace(self.folder / name)
        except OSError as error:
            raise OutputError(f"cannot write in {self.folder}: {os.strerror(error.errno or 0)}") from None

    def remove(self) -> None:
        """Remove what was kept on disk: this package's own files, and the folder when nothing else is in it."""
        if self.folder is not None:
            for name in (ANALYSIS_FILE, _INPUTS):
                (self.folder / name).unlink(missing_ok=True)
                (self.folder / f".{name}.new").unlink(missing_ok=True)
            with suppress(OSError):  # someone else's files are in it
                self.folder.rmdir()
