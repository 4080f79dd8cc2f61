"""File systems of fsspec in memory: one that works, and ones that fail as real ones do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem


class FailingFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Fails from a file on, or changes what it stores."""

    protocol = "failing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False
    written = 0
    fails_at: int | None = None
    changes: str | None = None
    """Name of a file that comes back with another last byte."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(str(path).removeprefix("failing://")))

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        kind = type(self)
        if kind.fails_at is not None and kind.written >= kind.fails_at:
            raise PermissionError("Access Denied")
        kind.written += 1
        super().put_file(lpath, rpath, **options)
        if kind.changes is not None and rpath.endswith(kind.changes):
            data = self.cat_file(rpath)
            self.pipe_file(rpath, data[:-1] + bytes([data[-1] ^ 1]))


@contextmanager
def failing(*, at: int | None = None, changes: str | None = None) -> Iterator[FailingFileSystem]:
    """Yield an empty file system `failing://` that fails in the way that is asked for.

    Args:
        at: Number of files after which nothing can be put any more.
        changes: End of the name of the file that is stored with other contents.
    """
    register_implementation("failing", FailingFileSystem, clobber=True)
    FailingFileSystem.store.clear()
    FailingFileSystem.pseudo_dirs[:] = [""]
    FailingFileSystem.written, FailingFileSystem.fails_at, FailingFileSystem.changes = 0, at, changes
    yield FailingFileSystem()


@contextmanager
def memory() -> Iterator[MemoryFileSystem]:
    """Yield the file system `memory://`, empty before and after."""
    files = MemoryFileSystem()
    for path in files.find(""):
        files.rm_file(path)
    yield files
    for path in files.find(""):
        files.rm_file(path)
