"""A snapshot of a folder, so that one state of it is published and changes are detected."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import (  # type: ignore[attr-defined]
    DEFAULT_IGNORE_PATTERNS,
    filter_repo_objects,
)

_SMALL = 10 * 2**20
"""Files up to this size are read into memory. The Hub stores larger ones as large files, by their sha256."""


_UNFINISHED = [".*.partial", "*/.*.partial", ".*.partial/*"]
"""What a run of this package leaves when it is killed while it writes a file."""


@dataclass(frozen=True)
class LocalFile:
    """A file as it was when the push began.

    Args:
        name: Its path in the repository.
        path: Its path on this machine.
        stamp: Size, modification time in nanoseconds, and inode.
        content: What is published under its name; None for large files, which are read from disk.
    """

    name: str
    path: Path
    stamp: tuple[int, int, int]
    content: bytes | None

    @property
    def git_oid(self) -> str:
        """The git object id of its content."""
        content = self.path.read_bytes() if self.content is None else self.content
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def read_folder(folder: Path) -> dict[str, LocalFile]:
    """Return the files of a folder by name, without those of git and of the Hub's cache.

    Args:
        folder: The folder.
    """
    return {name: _read_file(name, path) for name, path in _paths(folder).items()}


def changed_files(folder: Path, files: Mapping[str, LocalFile]) -> list[str]:
    """Return the names of files that were added, removed or changed since `read_folder`.

    Args:
        folder: The folder.
        files: What `read_folder` returned.
    """
    now = {name: _stamp(path) for name, path in _paths(folder).items()}
    then = {name: file.stamp for name, file in files.items()}
    return sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))


def _paths(folder: Path) -> dict[str, Path]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    names = filter_repo_objects(paths, ignore_patterns=[*DEFAULT_IGNORE_PATTERNS, *_UNFINISHED])
    return {name: paths[name] for name in names}


def _read_file(name: str, path: Path) -> LocalFile:
    # The stamp is taken first, so that a change before the file is read is detected.
    stamp = _stamp(path)
    return LocalFile(name, path, stamp, path.read_bytes() if stamp[0] <= _SMALL else None)


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
