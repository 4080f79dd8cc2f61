"""Fetching files from a place at a URL into a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import SourceError
from .output import staged_file
from .progress import byte_bar
from .storage import Storage

_CHUNK = 2**24


def fetch_files(storage: Storage, sizes: Mapping[str, int], folder: Path) -> None:
    """Fetch files into a folder; those that are there are not fetched again.

    Each appears whole or not at all, so a fetch that was stopped goes on with the file that it was at.

    Args:
        storage: Where they are.
        sizes: Their names, with `/` between folders, and sizes in bytes.
        folder: Where they go; it is created.

    Raises:
        SourceError: One cannot be read, or does not have its size.
        OutputError: There is no space or no permission.
    """
    missing = {name: size for name, size in sizes.items() if not (folder / name).is_file()}
    if not missing:
        return
    with byte_bar(f"fetching {storage.name}", sum(missing.values())) as done:
        for name, size in missing.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with staged_file(folder / name, overwrite=True) as place:
                _fetch(storage, name, size, place, done)


def _fetch(storage: Storage, name: str, size: int, place: Path, done: Callable[[int], None]) -> None:
    found = 0
    with storage.errors(SourceError, f"cannot read {name} of"):
        reader = storage.files.open(storage.inside(name), "rb")
    with reader, place.open("wb") as file:
        while True:
            with storage.errors(SourceError, f"cannot read {name} of"):
                chunk = reader.read(_CHUNK)
            if not chunk:
                break
            file.write(chunk)
            found += len(chunk)
            done(len(chunk))
    if found != size:
        raise SourceError(f"{storage.shown} gives {found:,} bytes of {name}, which has {size:,}; run it again")
