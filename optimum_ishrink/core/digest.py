"""Short SHA-256 digests of JSON values, tensors and files: two things are the same when their contents are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_CHUNK = 2**24


def digest(value: Any) -> str:
    """Return a short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def as_json(key: Mapping[str, Any]) -> dict[str, Any]:
    """Return a key after a round trip through JSON, so that it compares equal to one that was read from a file."""
    found: dict[str, Any] = json.loads(json.dumps(key))
    return found


def tensor_digest(*tensors: torch.Tensor) -> str:
    """Return a short hash of tensors' contents."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def file_digest(paths: Iterable[Path], prefix: bytes = b"") -> str:
    """Return a short hash of some bytes, then of files with their names. Files are read in chunks."""
    found = hashlib.sha256(prefix)
    for path in paths:
        found.update(path.name.encode())
        with path.open("rb") as file:
            while part := file.read(_CHUNK):
                found.update(part)
    return found.hexdigest()[:16]


def folder_digest(folder: Path, kinds: Collection[str]) -> str:
    """Return a short hash of the files of some kinds in a folder and in those below it.

    Args:
        folder: The folder.
        kinds: Endings of the files' names, such as `.py`.
    """
    return file_digest(sorted(path for path in folder.rglob("*") if path.suffix in kinds and path.is_file()))
