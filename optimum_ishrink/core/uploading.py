"""Putting an output at a URL of fsspec: config files last, then everything is read again and compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from ..errors import OutputError, PublishError
from .progress import byte_bar
from .storage import Storage

_CHUNK = 2**24
_SUFFIX = ".ishrink-upload"
"""Of files beside a place: one without contents that shows, before any long work, that something can be written there,
and one that is not whole yet."""


def check_upload(storage: Storage, overwrite: bool) -> None:
    """Check that something can be put at a place, before any long work.

    Args:
        storage: The place.
        overwrite: Whether what is there is replaced.

    Raises:
        OutputError: Something is there, it is all of a bucket, or nothing can be written there.
    """
    if not urlsplit(storage.shown).path.strip("/"):
        # What is not of the output is removed when it is replaced.
        raise OutputError(f"{storage.shown} is a whole bucket or host; name a folder in it, {storage.shown}/small")
    with storage.errors(OutputError, "cannot write"):
        storage.files.invalidate_cache()
        taken = bool(storage.files.exists(storage.path)) and not _is_empty(storage)
    if taken and not overwrite:
        raise OutputError(f"{storage.shown} is not empty; name another place or pass --overwrite")
    probe = storage.path.rstrip("/") + _SUFFIX
    with storage.errors(OutputError, "cannot write"):
        storage.make_folder_of(probe)
        storage.files.pipe_file(probe, b"")
        storage.files.rm_file(probe)


def _is_empty(storage: Storage) -> bool:
    return not storage.files.isfile(storage.path) and not storage.files.find(storage.path)


def upload(output: Path, storage: Storage) -> None:
    """Put a file or a folder at a place, and read it again.

    Of a folder, JSON files come last and config.json after all others, so that nothing loads what is not whole. What
    was there before loses these first; other files that the folder does not have are removed.

    Args:
        output: The file or folder.
        storage: The place.

    Raises:
        PublishError: It cannot be written or read, or what was read is not what was written. The folder is whole.
    """
    again = f"; ishrink push --model {output} --url {storage.shown} --overwrite tries again"
    with storage.errors(PublishError, f"{output} is complete, but cannot be uploaded to", again):
        storage.files.invalidate_cache()
        if output.is_file():
            _upload_file(output, storage)
        else:
            _upload_folder(output, storage)


def _upload_file(file: Path, storage: Storage) -> None:
    partial = storage.path + _SUFFIX
    with byte_bar(f"uploading {file.name}", 2 * file.stat().st_size) as done:
        _put(file, storage, partial, done)
        storage.files.mv(partial, storage.path)


def _upload_folder(folder: Path, storage: Storage) -> None:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    before = set(storage.list_files()) if storage.files.exists(storage.path) else set()
    for name in sorted(before, key=_turn, reverse=True):
        if name.endswith(".json") or name not in files:
            storage.files.rm_file(storage.inside(name))
    with byte_bar(f"uploading {folder.name}", 2 * sum(path.stat().st_size for path in files.values())) as done:
        for name in sorted(files, key=_turn):
            storage.make_folder_of(storage.inside(name))
            _put(files[name], storage, storage.inside(name), done)
    found = set(storage.list_files())
    if found != set(files):
        odd = sorted(found ^ set(files))[0]
        raise PublishError(f"{storage.shown} does not hold what was uploaded: {odd}; upload {folder} again")


def _turn(name: str) -> tuple[bool, bool, str]:
    """Return a file's place in the order of an upload, to sort by: config.json is last, after other JSON files."""
    return name.endswith(".json"), name.rpartition("/")[2] == "config.json", name


def _put(file: Path, storage: Storage, path: str, done: Callable[[int], None]) -> None:
    storage.files.put_file(str(file), path)
    done(file.stat().st_size)
    with file.open("rb") as mine, storage.files.open(path, "rb") as theirs:
        while chunk := mine.read(_CHUNK):
            if _read(theirs, len(chunk)) != chunk:
                break
            done(len(chunk))
        if chunk or theirs.read(1):
            raise PublishError(f"{storage.shown} holds {file.name} with other contents; upload {file} again")


def _read(file: IO[bytes], count: int) -> bytes:
    """Return as many bytes as asked for, where a file system gives fewer at a time."""
    found = b""
    while len(found) < count and (part := file.read(count - len(found))):
        found += part
    return found
