"""Locks on folders. They end with their process: what a killed run left is told from what a run still fills."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import OutputError
from .durable import disk_errors

fcntl: Any = None
"""The module of POSIX systems; None on Windows, which has no such locks."""
with suppress(ImportError):
    fcntl = import_module("fcntl")


def try_lock(folder: Path) -> int | None:
    """Lock a folder, and return the handle to close; None where it is locked, or where locking is not possible.

    Args:
        folder: An existing folder.
    """
    return _lock(folder)[0]


def _lock(folder: Path) -> tuple[int | None, bool]:
    """Return the handle of a new lock, or None, and whether that is because another process holds it."""
    if fcntl is None:
        return None, False
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None, False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # another process has it, or this file system has no locks
        os.close(handle)
        return None, isinstance(error, BlockingIOError)
    return handle, False


@contextmanager
def hidden_folder(place: Path) -> Iterator[Path]:
    """Yield a new, hidden folder beside a place, locked; those that killed runs left there are removed first.

    Args:
        place: The file or folder that is to appear.

    Raises:
        OSError: It cannot be made.
    """
    _remove_abandoned(place)
    folder, handle = _make_locked(place)
    try:
        yield folder
    finally:
        if handle is not None:
            os.close(handle)


def _make_locked(place: Path) -> tuple[Path, int | None]:
    """Make a hidden folder and lock it, and make another one where somebody took it for abandoned before the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".partial", dir=place.parent))
        handle, is_taken = _lock(folder)
        if not is_taken and folder.is_dir():
            return folder, handle
        if handle is not None:
            os.close(handle)


def _remove_abandoned(place: Path) -> None:
    """Remove the hidden folders of runs that were killed. One that cannot be locked is in use, or stays."""
    pattern = re.compile(rf"\.{re.escape(place.name)}\.[a-z0-9_]{{8}}\.partial")
    with suppress(OSError):
        for path in [path for path in place.parent.iterdir() if pattern.fullmatch(path.name)]:
            handle = try_lock(path)
            if handle is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(handle)


@contextmanager
def claimed_folder(folder: Path, what: str) -> Iterator[None]:
    """Keep a working folder to this process; it is made where it is missing, and removed if it is empty at the end.

    Args:
        folder: The folder. It may be removed in the meantime.
        what: What another process would be doing there, for the message.

    Raises:
        OutputError: Another process has it, or it cannot be made.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()] or [folder]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    handle, is_taken = _lock(folder)
    if is_taken:
        raise OutputError(f"another run {what} in {folder}; wait for it, or name another output folder")
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):  # it is gone, or it holds what the next run resumes from
                path.rmdir()
        if handle is not None:
            os.close(handle)
