"""Random weights in a GGUF file that has its header. Imports the standard library alone (see `on_device`)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import OutputError

ALIGNMENT = 32
"""GGUF's tensors begin at multiples of this many bytes."""

_CHUNK = 2**22

Parts = Sequence[tuple[str, int]]
"""The tensors of a file in its order: name of the type, and bytes."""


def append_weights(path: Path, parts: Parts, tiles: Mapping[str, bytes]) -> None:
    """Write the weights after a file's header.

    Args:
        path: The file. It has the header, and no weights yet.
        parts: The tensors.
        tiles: For each type the bytes that are repeated: whole blocks of random weights.
    """
    chunks = {name: tile * max(1, _CHUNK // len(tile)) for name, tile in tiles.items()}
    with path.open("r+b") as file:
        file.seek(0, 2)
        _pad(file, file.tell())
        for name, nbytes in parts:
            chunk = chunks[name]
            for start in range(0, nbytes, len(chunk)):
                file.write(chunk[: nbytes - start])
            _pad(file, nbytes)


def _pad(file: BinaryIO, nbytes: int) -> None:
    file.write(bytes(-nbytes % ALIGNMENT))


def file_bytes(header: int, parts: Parts) -> int:
    """Return the bytes of a file with its weights.

    Args:
        header: Bytes of its header.
        parts: The tensors.
    """
    return sum(nbytes + -nbytes % ALIGNMENT for nbytes in (header, *(nbytes for _, nbytes in parts)))


def check_room(folder: Path, needed: int, elsewhere: str) -> None:
    """Check that probes fit on the disk, before the first is written.

    Args:
        folder: Where they are written.
        needed: Their bytes.
        elsewhere: How another place is named.

    Raises:
        OutputError: They do not fit.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"the probes take {needed / 1e6:,.0f} MB and {folder.parent} has {free / 1e6:,.0f} MB free; name another "
            f"place with {elsewhere}"
        )
