"""Output folders and files that appear complete or not at all, and the checks before long work."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import OutputError
from .exchange import exchange
from .locks import hidden_folder

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)
"""Errors of a full, protected or read-only location: the user has to choose another one."""


def check_output(folder: Path, overwrite: bool) -> None:
    """Check that a folder can be created, before any long work.

    Raises:
        OutputError: It is not empty, its parent cannot be written to, or it cannot be replaced by a rename. That is so
            for a mount point, and for the working directory: the user's shell would still be in the old folder.
    """
    folder = _resolved(folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file; name a folder")
        if folder.is_mount():
            raise OutputError(f"{folder} is a mount point, which cannot be replaced; name a folder in it")
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise OutputError(f"{folder} is not empty; name another folder or pass --overwrite")
        if _is_in_use(folder):
            raise OutputError(
                f"{folder} is the working directory or holds it, and would be replaced; name a new folder in it"
            )
        parent = folder.parent
        while not parent.exists():
            parent = parent.parent
    except OSError as error:
        raise OutputError(f"cannot read {folder}: {_reason(error)}; name another folder") from None
    if not parent.is_dir():
        raise OutputError(f"{parent} is a file; name another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write in {parent}; name another folder")


def check_not_inside(output: Path, inputs: Iterable[Path]) -> None:
    """Check that no input would be deleted when the output folder is replaced.

    Args:
        output: The output folder.
        inputs: Everything that is read: the source's folder, text files. Symbolic links are followed.

    Raises:
        OutputError: An input is the output folder or is inside it.
    """
    folder = _resolved(output)
    for path in inputs:
        place = _resolved(path)
        if folder in (place, *place.parents):
            where = "is" if place == folder else "holds"
            raise OutputError(f"the output folder {folder} {where} the input {path}; name another output folder")


@contextmanager
def staged_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a hidden folder next to `folder`, and rename it to `folder` when the block succeeds.

    On any error, Ctrl-C included, the hidden folder is removed and `folder` is unchanged.

    Args:
        folder: The result. If it is a symbolic link, the folder that it points to is replaced.
        overwrite: Replace an existing folder. It is moved aside first and removed only when the new one is in place.

    Raises:
        OutputError: The folder is not empty, or it cannot be written because it or the disk is full or protected.
    """
    check_output(folder, overwrite)
    folder = _resolved(folder)
    made = [parent for parent in folder.parents if not parent.exists()]
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            staging = stack.enter_context(hidden_folder(folder))
        except OSError as error:
            _remove_empty(made)
            raise OutputError(f"cannot write in {folder.parent}: {_reason(error)}") from None
        try:
            yield staging
            _replace(staging, folder, overwrite)
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            _remove_empty(made)
            if isinstance(error, OSError) and error.errno in _WRITE_ERRORS:
                raise OutputError(f"cannot write {folder}: {_reason(error, outside=staging)}") from None
            raise


def check_output_file(path: Path, overwrite: bool | None) -> None:
    """Check that a file can be created, before any long work.

    Args:
        path: The file.
        overwrite: Whether an existing file is replaced; None where that cannot be requested.

    Raises:
        OutputError: It already exists, it is a folder, or its folder is missing or cannot be written to.
    """
    path = _resolved(path)
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name a file in it")
        if path.exists() and not overwrite:
            way_out = "" if overwrite is None else " or pass --overwrite"
            raise OutputError(f"{path} already exists; name another file{way_out}")
        if not path.parent.is_dir():
            raise OutputError(f"{path.parent} is not a folder; create it first, or name another file")
    except OSError as error:
        raise OutputError(f"cannot read {path}: {_reason(error)}; name another file") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write in {path.parent}; name another file")


@contextmanager
def staged_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path in a hidden folder next to `path`, and move the file there to `path` when the block succeeds.

    On any error, Ctrl-C included, the hidden folder is removed and `path` is unchanged.

    Args:
        path: The result.
        overwrite: Replace an existing file once the new one is complete.

    Raises:
        OutputError: The file already exists, or it cannot be written because it or the disk is full or protected.
    """
    check_output_file(path, overwrite)
    path = _resolved(path)
    with ExitStack() as stack:
        try:
            staging = stack.enter_context(hidden_folder(path))
        except OSError as error:
            raise OutputError(f"cannot write in {path.parent}: {_reason(error)}") from None
        try:
            yield staging / path.name
            if not overwrite:
                check_output_file(path, overwrite)  # another program can have written it in the meantime
            (staging / path.name).replace(path)
        except OSError as error:
            if error.errno in _WRITE_ERRORS:
                raise OutputError(f"cannot write {path}: {_reason(error, outside=staging)}") from None
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _resolved(path: Path) -> Path:
    """Return a path without links and `..`: a folder that is renamed needs a name, and a parent on the same disk."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # circular links; a working directory that was removed
        raise OutputError(f"{path} cannot be resolved; give a full path") from None


def _is_in_use(folder: Path) -> bool:
    """Whether a folder is the working directory or holds it."""
    try:
        working = Path.cwd()
    except FileNotFoundError:  # it was removed
        return False
    return folder in (working, *working.parents)


def _reason(error: OSError, outside: Path | None = None) -> str:
    """Return the system's message, and the file that it is about unless that is in the hidden folder."""
    reason = os.strerror(error.errno or 0)
    if outside is None or not isinstance(error.filename, str) or outside in Path(error.filename).parents:
        return reason
    return f"{reason} ({error.filename})"


def _remove_empty(made: Iterable[Path]) -> None:
    for parent in made:  # deepest first; a parent that another program filled in the meantime is not removed
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _replace(staging: Path, folder: Path, overwrite: bool) -> None:
    staging.chmod(0o777 & ~_umask())  # mkdtemp creates folders that only the user can read
    if not overwrite:
        _put(staging, folder)
        return
    if folder.exists() and exchange(staging, folder):
        # Even if the process is killed here, one of the two is complete at the place.
        _remove(staging, folder)
        return
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    existed = folder.exists()
    try:
        if existed:
            folder.rename(aside)
        staging.rename(folder)
    except BaseException as error:
        if existed and aside.exists() and not folder.exists():
            aside.rename(folder)
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {folder}: {_reason(error)}") from None
        raise
    if existed:
        _remove(aside, folder)


def _put(staging: Path, folder: Path) -> None:
    """Rename the new folder to its place, where there is none or an empty one."""
    try:
        staging.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise OutputError(
                f"{folder} is not empty any more: another program wrote to it in the meantime; "
                "name another folder or pass --overwrite"
            ) from None
        raise OutputError(f"cannot write {folder}: {_reason(error)}") from None


def _remove(aside: Path, folder: Path) -> None:
    """Remove the old folder, completely even if the removal is interrupted."""
    try:
        shutil.rmtree(aside)
    except BaseException as error:
        with suppress(OSError):  # folders in it may be protected; those of this user can be made writable
            for place, folders, _ in os.walk(aside):
                for path in (Path(place), *(Path(place, name) for name in folders)):
                    if not path.is_symlink():
                        path.chmod(0o700)
        shutil.rmtree(aside, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        if aside.exists():
            raise OutputError(
                f"{folder} is complete, but the folder that it replaced cannot be removed: {_reason(error)}; "
                f"remove {aside}"
            ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
