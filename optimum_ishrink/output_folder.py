"""An output folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError


def check_output(folder: Path, overwrite: bool) -> None:
    """Check that a folder can be made, before any long work.

    Raises:
        OutputError: It holds something already, or its place cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise OutputError(f"{folder} already holds something; name another folder or pass --overwrite")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write in {parent}; name another folder")


@contextmanager
def staged_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a hidden folder beside `folder` to fill, and rename it when all went well.

    Whatever goes wrong, Ctrl-C included, the hidden folder is removed and `folder` is as it was.

    Args:
        folder: Where the result shall be.
        overwrite: Replace what is there. The old folder is moved aside first and removed only when the new one is in
            place.

    Raises:
        OutputError: The folder holds something already, or cannot be written.
    """
    check_output(folder, overwrite)
    folder = folder.absolute()
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise OutputError(f"cannot write in {folder.parent}: {os.strerror(error.errno or 0)}") from None
    try:
        yield staging
        _replace(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in made:  # deepest first; a parent that someone else filled meanwhile stays
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def _replace(staging: Path, folder: Path) -> None:
    staging.chmod(0o777 & ~_umask())  # mkdtemp made it private to the user
    aside = None
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.rename(aside)
    try:
        staging.rename(folder)
    except OSError as error:
        if aside is not None:
            aside.rename(folder)
        raise OutputError(f"cannot write {folder}: {os.strerror(error.errno or 0)}") from None
    if aside is not None:
        shutil.rmtree(aside)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
