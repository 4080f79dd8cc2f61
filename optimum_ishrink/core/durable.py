"""Files that are complete or absent even after a power cut: written to a temporary name, synced, renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from ..errors import OutputError

_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST)
_REPORTED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, *_NO_FOLDER)


@contextmanager
def disk_errors(place: Path, hint: str = "") -> Iterator[None]:
    """Turn the errors of a full or protected disk into an `OutputError`.

    Args:
        place: What is being written.
        hint: What can be resumed, appended to the message.

    Raises:
        OutputError: There is no space or no permission.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REPORTED:
            raise
        what = os.strerror(error.errno or 0)
        if error.errno in _NO_FOLDER:
            raise OutputError(f"cannot write {place}: {what}; name another folder") from None
        raise OutputError(
            f"cannot write {place}: {what}; free some space and run the same command again{hint}"
        ) from None


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears complete or not at all, even after a power cut.

    Raises:
        OutputError: There is no space or no permission.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data, durable=True)
        sync(path.parent)


def replace_file(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file, or replace one, so that it is whole at any time.

    Args:
        path: The file; its folder exists.
        data: Its contents.
        durable: Flush it to the disk first, so that it is whole after a power cut, too.

    Raises:
        OSError: It cannot be written; an existing file is unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        if durable:
            sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors; the file appears complete or not at all."""
    write_whole(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors that `save_tensors` wrote, onto the CPU."""
    return load_file(path)


def rename_folder(partial: Path, folder: Path) -> None:
    """Flush all files of a folder to the disk and rename it; an existing folder of that name is replaced."""
    for path in partial.rglob("*"):
        sync(path)
    sync(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    sync(folder.parent)
