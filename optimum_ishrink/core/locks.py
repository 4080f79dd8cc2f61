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
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or this file system has no locks
        os.close(handle)
        return None
    return handle


@contextmanager
def hidden_folder(place: Path) -> Iterator[Path]:
    """Yield a new, hidden folder beside a place, locked; those that killed runs left there are removed first.

    Args:
        place: The file or folder that is to appear.

    Raises:
        OSError: It cannot be made.
    """
    _remove_abandoned(place)
    made = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".new", dir=place.parent))
    handle = try_lock(made)
    # It gets the name by which others look for abandoned folders only once it is locked.
    folder = made.rename(made.with_suffix(".partial"))
    try:
        yield folder
    finally:
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
    handle = try_lock(folder)
    if handle is None and _is_locked(folder):
        raise OutputError(f"another run {what} in {folder}; wait for it, or name another output folder")
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):  # it is gone, or it holds what the next run resumes from
                path.rmdir()
        if handle is not None:
            os.close(handle)


def _is_locked(folder: Path) -> bool:
    """Whether another process holds the lock, rather than that there are none here."""
    if fcntl is None:
        return False
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
