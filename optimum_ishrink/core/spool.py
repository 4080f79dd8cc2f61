"""Tensors kept in files instead of memory: hidden states between two layers, and large matrices that are filled."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from math import prod
from pathlib import Path
from typing import Protocol

import torch

from ..errors import OutputError, SourceError
from .durable import disk_errors
from .sizes import size_in_words

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class States(Protocol):
    """A sequence of tensors to which more are appended."""

    def append(self, tensor: torch.Tensor, /) -> None:
        """Add a tensor."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> torch.Tensor: ...

    def __iter__(self) -> Iterator[torch.Tensor]: ...

    def take(self, index: int, /) -> torch.Tensor:
        """Return a tensor that is not read again."""


class InMemory(list[torch.Tensor]):
    """Tensors in memory."""

    def take(self, index: int, /) -> torch.Tensor:
        """Return a tensor that is not read again, and free its place."""
        found = self[index]
        self[index] = torch.empty(0)
        return found


class OnDisk(Sequence[torch.Tensor]):
    """Tensors in one file. Each is read anew, into fresh memory, whenever it is asked for.

    The file is read and written, not mapped: mapped pages count as memory of the process, and a full disk ends a
    process that writes to a map with a signal instead of an error.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch(mode=0o600)
        self._file = path.open("r+b", buffering=0)
        self._places: list[tuple[int, torch.dtype, tuple[int, ...]]] = []
        self._end = 0
        self._finalizer = weakref.finalize(self, _close, self._file, path)

    def append(self, tensor: torch.Tensor, /) -> None:
        """Write a tensor to the end of the file.

        Raises:
            OutputError: There is no room for it.
        """
        data = tensor.detach().cpu().contiguous()
        view = memoryview(data.flatten().view(torch.uint8).numpy().data)
        offset = self._end
        with room_for(self.path, len(view)):
            self._file.seek(offset)
            while view:
                count = self._file.write(view)
                view, offset = view[count:], offset + count
        self._places.append((self._end, data.dtype, tuple(data.shape)))
        self._end = offset

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]
        start, dtype, shape = self._places[index]
        found = torch.empty(shape, dtype=dtype)
        view = memoryview(found.flatten().view(torch.uint8).numpy().data)
        self._file.seek(start)
        while view:
            count = self._file.readinto(view)
            if not count:
                raise SourceError(f"{self.path} was cut short while it was used; run the same command again")
            view = view[count:]
        return found

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[index] for index in range(len(self)))

    def take(self, index: int, /) -> torch.Tensor:
        """Return a tensor that is not read again."""
        return self[index]

    def keep(self) -> dict[str, object]:
        """Leave the file where it is when this object goes, and return what `reopen` needs, as plain values."""
        self._finalizer.detach()
        self._finalizer = weakref.finalize(self, _close, self._file, None)
        places = [[start, str(dtype).removeprefix("torch."), list(shape)] for start, dtype, shape in self._places]
        return {"file": self.path.name, "places": places}

    @classmethod
    def reopen(cls, folder: Path, kept: dict[str, object]) -> OnDisk:
        """Return the tensors of a file that was kept.

        Args:
            folder: Its folder.
            kept: What `keep` returned.

        Raises:
            OSError: It is not there any more.
        """
        path = folder / str(kept["file"])
        path.stat()
        found = cls(path)
        found._finalizer.detach()
        found._finalizer = weakref.finalize(found, _close, found._file, None)
        places: list[tuple[int, str, list[int]]] = kept["places"]  # type: ignore[assignment]
        for start, dtype, shape in places:
            kind: torch.dtype = getattr(torch, dtype)
            found._places.append((start, kind, tuple(shape)))
            found._end = max(found._end, start + prod(shape) * kind.itemsize)
        return found


def _close(file: FileIO, path: Path | None) -> None:
    file.close()
    if path is not None:
        path.unlink(missing_ok=True)


@contextmanager
def room_for(place: Path, nbytes: int) -> Iterator[None]:
    """Turn the error of a full disk into one that says how much was to be written, where, and what moves it.

    Args:
        place: The file that is written.
        nbytes: How much is written to it.

    Raises:
        OutputError: There is no room for it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        folder = place.parent
        raise OutputError(
            f"no room for hidden states: {size_in_words(nbytes)} more do not fit in {folder}, where "
            f"{size_in_words(shutil.disk_usage(folder).free)} are free; "
            "name a folder on another disk with --offload-folder"
        ) from None


def check_room(folder: Path, nbytes: int) -> None:
    """Check that a folder has room for what a run keeps there.

    Args:
        folder: An existing folder.
        nbytes: What will be in it at most, an estimate.

    Raises:
        OutputError: It does not fit.
    """
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise OutputError(
            f"no room for hidden states: about {size_in_words(nbytes)} are needed in {folder}, where "
            f"{size_in_words(free)} are free; name a folder on another disk with --offload-folder"
        )


class Spool:
    """A folder for the files of one run.

    Args:
        folder: An existing folder, which stays; None for a temporary one, which goes with this object.
        place: Where a temporary one is made; None for the system's folder for them.

    Raises:
        OutputError: It cannot be made.
    """

    def __init__(self, folder: Path | None = None, place: Path | None = None) -> None:
        self.outlives = folder is not None
        """Whether the folder is there when a killed run begins again."""
        if folder is not None:
            self.folder = folder
        else:
            with disk_errors(place or Path(tempfile.gettempdir())):
                if place is not None:
                    place.mkdir(parents=True, exist_ok=True)
                self.folder = Path(tempfile.mkdtemp(prefix="ishrink-offload-", dir=place))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def _path(self, ending: str) -> Path:
        with disk_errors(self.folder):
            file, name = tempfile.mkstemp(suffix=f".{ending}", dir=self.folder)
        os.close(file)
        return Path(name)

    def states(self) -> OnDisk:
        """Return an empty sequence of tensors. Its file goes when it is not used any more."""
        return OnDisk(self._path("states"))

    def zeros(self, *shape: int) -> torch.Tensor:
        """Return a float32 tensor of zeros whose pages can leave memory at any time, see `put_away`.

        It is mapped to a file that has no name any more. The room is reserved first, so that no write to it can fail.

        Args:
            shape: Size of each axis.

        Raises:
            OutputError: There is no room for it.
        """
        path, nbytes = self._path("matrix"), max(prod(shape) * 4, 1)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with room_for(path, nbytes):
                _reserve(file, nbytes)
            mapped = mmap.mmap(file, nbytes)
        finally:
            os.close(file)
            with suppress(OSError):  # not every system removes a file that is mapped; its folder goes later
                path.unlink()
        found = torch.frombuffer(mapped, dtype=torch.float32, count=prod(shape)).view(shape)
        address = found.untyped_storage().data_ptr()
        _MAPS[address] = weakref.ref(mapped, lambda _: _MAPS.pop(address, None))
        return found


def _reserve(file: int, nbytes: int) -> None:
    """Make a file as long as it will be, and reserve its room where the system can."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, nbytes)
    else:
        os.ftruncate(file, nbytes)


_MAPS: dict[int, weakref.ref[mmap.mmap]] = {}
"""The map of each mapped tensor, by the address of its storage."""


def put_away(*tensors: torch.Tensor) -> None:
    """Let the pages of mapped tensors leave memory until they are used again; others stay as they are.

    Args:
        tensors: The tensors.
    """
    for tensor in tensors:
        found = _MAPS.get(tensor.untyped_storage().data_ptr())
        mapped = None if found is None else found()
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def filled(states: States, tensors: Iterable[torch.Tensor]) -> States:
    """Append tensors one by one as they are made, and return the sequence.

    Args:
        states: An empty sequence.
        tensors: What makes them.
    """
    for tensor in tensors:
        states.append(tensor)
    return states
