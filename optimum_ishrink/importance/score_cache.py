"""Scores cached on disk, each with everything that it depends on: the same request is not scored twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..core.digest import as_json, digest

_TENSOR = "scores"
_KEY = "key"


@dataclass(frozen=True)
class ScoreCache:
    """Cached scores of one model.

    Args:
        folder: Where they are stored.
    """

    folder: Path

    def read(self, key: Mapping[str, Any]) -> torch.Tensor | None:
        """Return the cached scores of a key, or None.

        A file that cannot be read, or that holds another key, is ignored.

        Args:
            key: Everything that the scores depend on, as plain values.
        """
        path = self._path(key)
        found = _read_key(path)
        if found is None or found != as_json(key):
            return None
        with safe_open(path, framework="pt") as file:
            scores: torch.Tensor = file.get_tensor(_TENSOR)
        return scores

    def write(self, key: Mapping[str, Any], scores: torch.Tensor) -> None:
        """Cache scores. A cache that cannot be written is not an error: the run has its scores anyway.

        Args:
            key: Everything that they depend on, as plain values.
            scores: The scores.
        """
        path = self._path(key)
        staged = path.with_suffix(f".{os.getpid()}.partial")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({_TENSOR: scores.contiguous()}, staged, metadata={_KEY: json.dumps(as_json(key))})
            staged.replace(path)

    def differences(self, key: Mapping[str, Any]) -> list[str]:
        """Return the entries in which the nearest cached scores differ from a key; empty when none are cached.

        Args:
            key: The key that was not found. Only scores of the same `criterion` and `dimension` are compared.
        """
        wanted = as_json(key)
        nearest: list[str] = []
        for path in sorted(self.folder.glob(f"{_stem(key)}-*.safetensors")):
            found = _read_key(path)
            if found is None:
                continue
            differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
            if differing and (not nearest or len(differing) < len(nearest)):
                nearest = differing
        return nearest

    def _path(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{_stem(key)}-{digest(as_json(key))}.safetensors"


def _stem(key: Mapping[str, Any]) -> str:
    return f"{key['criterion']}-{key['dimension']}"


def _read_key(path: Path) -> dict[str, Any] | None:
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get(_KEY, "null"))
    except (OSError, SafetensorError, ValueError):
        return None
    return found if isinstance(found, dict) else None
