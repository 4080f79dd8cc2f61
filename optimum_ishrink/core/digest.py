"""What tells one checkpoint, one text or one request from another: contents, not names or places."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

_CHUNK = 2**24


def digest(value: Any) -> str:
    """Return a short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def plain(key: Mapping[str, Any]) -> dict[str, Any]:
    """Return a key as JSON gives it back, so that it equals the one that is read from a file."""
    found: dict[str, Any] = json.loads(json.dumps(key))
    return found


def tensor_digest(*tensors: torch.Tensor) -> str:
    """Return a short hash of tensors' contents."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def file_digest(paths: Iterable[Path], first: bytes = b"") -> str:
    """Return a short hash of some bytes and of files, their names included, a part of a file in memory at a time."""
    found = hashlib.sha256(first)
    for path in paths:
        found.update(path.name.encode())
        with path.open("rb") as file:
            while part := file.read(_CHUNK):
                found.update(part)
    return found.hexdigest()[:16]
