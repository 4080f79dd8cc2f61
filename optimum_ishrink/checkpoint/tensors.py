"""Safetensors files read and written one tensor at a time.

The safetensors library checks a file's header, but it maps the whole file, and it saves a shard only if all of its
tensors are in memory. Here byte ranges are read at the offsets in the header, unchanged tensors are copied from
file to file without passing through Python, and a shard is written tensor by tensor.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from ..core.scratch import Scratch
from ..errors import OutputError, SourceError

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CHUNK = 16 * 1024 * 1024


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor is on disk.

    Args:
        file: The safetensors file.
        dtype: The format's name of the dtype, such as `"BF16"`.
        shape: Size of each axis.
        start: First byte in the file.
        end: One past the last byte.
        stored_as: The name that its file has for it, where the model class has another.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    stored_as: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.start

    def rows(self, first: int, end: int) -> TensorInfo:
        """Return where some consecutive rows are, along the first axis.

        Args:
            first: The first of them.
            end: One past the last.
        """
        width = self.nbytes // self.shape[0]
        shape, start = (end - first, *self.shape[1:]), self.start + first * width
        return replace(self, shape=shape, start=start, end=start + shape[0] * width)

    def part(self, offset: int, nbytes: int) -> TensorInfo:
        """Return where some of the bytes are, as a tensor of bytes; fewer where the tensor ends before.

        Args:
            offset: The first of them, from the beginning of the tensor.
            nbytes: How many.
        """
        start, end = self.start + offset, min(self.start + offset + nbytes, self.end)
        return replace(self, dtype="U8", shape=(end - start,), start=start, end=end)


@dataclass(frozen=True)
class OutgoingTensor:
    """A tensor to be written: a byte range to copy, or what `make()` returns, or the pieces that `pieces()` yields.

    Args:
        name: Name in the new file.
        dtype: The format's dtype name.
        shape: Shape in the new file.
        source: Where the unchanged bytes are, when nothing is cut.
        make: Returns the tensor; called just before it is written, so that one tensor at a time is in memory.
        pieces: Yields the tensor in parts along its first axis, for one that is too large to be in memory as a whole.
            Each is written before the next is read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: TensorInfo | None = None
    make: Callable[[], torch.Tensor] | None = None
    pieces: Callable[[], Iterable[torch.Tensor]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the new file."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def is_copied(self) -> bool:
        """Whether its bytes are those of the source."""
        return self.make is None and self.pieces is None

    def values(self) -> Iterator[torch.Tensor]:
        """Yield the bytes of a tensor that is not copied, in parts, each uint8 with one axis."""
        left = self.nbytes
        for part in (self.make(),) if self.make is not None else self.pieces() if self.pieces is not None else ():
            assert part.dtype == DTYPES[self.dtype] and tuple(part.shape[1:]) == self.shape[1:], self.name
            found = part.contiguous().flatten().view(torch.uint8)
            left -= found.numel()
            yield found
        assert left == 0, self.name


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the location of every tensor in a safetensors file, without reading the tensors.

    Raises:
        SourceError: The file is truncated, corrupt, or holds a dtype that cannot be pruned.
    """
    try:
        with safe_open(path, framework="pt"):
            pass  # the library checks the header, the offsets and the file's length
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} is not a complete safetensors file ({error}); download it again") from None
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise SourceError(
                f"{path.name} holds {name} as {entry['dtype']}, a quantised format; prune the unquantised checkpoint"
            )
        start, end = entry["data_offsets"]
        tensors[name] = TensorInfo(path, entry["dtype"], tuple(entry["shape"]), 8 + length + start, 8 + length + end)
    return tensors


def refuse_pickles(place: str, names: Iterable[str]) -> None:
    """Refuse a folder or repository without safetensors if it holds pickles.

    Args:
        place: A folder or a Hub id, for the message.
        names: Names of its files.

    Raises:
        SourceError: One of them is a pickle, which is never loaded.
    """
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
    if pickles:
        raise SourceError(
            f"{place} holds its weights only as pickle ({pickles[0]}), which can run code when it is loaded; "
            "use a revision with safetensors"
        )


def read_index(folder: Path) -> dict[str, TensorInfo]:
    """Return every tensor of a checkpoint folder, from its single file or from its shards.

    If a folder has both, the single file is used, as in transformers.

    Raises:
        SourceError: There are no safetensors, or the index does not fit the files.
    """
    if (folder / WEIGHTS_NAME).is_file():
        return read_header(folder / WEIGHTS_NAME)
    index_path = folder / INDEX_NAME
    if not index_path.exists():
        refuse_pickles(str(folder), (path.name for path in folder.glob("*")))
        raise SourceError(f"{folder} holds neither {WEIGHTS_NAME} nor {INDEX_NAME}")
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(f"{index_path} is not a safetensors index; download it again") from None
    tensors: dict[str, TensorInfo] = {}
    for file_name in files:
        # An index is untrusted input: it must not point outside its folder.
        if Path(file_name).name != file_name or not file_name.endswith(".safetensors"):
            raise SourceError(f"{index_path} names {file_name!r}, which is not a safetensors file in the same folder")
        if not (folder / file_name).is_file():
            raise SourceError(f"{index_path} names {file_name}, which is missing; download it again")
        held = read_header(folder / file_name)
        for name in (name for name, file in weight_map.items() if file == file_name):
            if name not in held:
                raise SourceError(f"{index_path} places {name} in {file_name}, which does not hold it")
            tensors[name] = held[name]
    return tensors


def read_tensor(info: TensorInfo, scratch: Scratch | None = None) -> torch.Tensor:
    """Read one tensor. The file is not mapped, so that its pages do not count as this process's memory.

    Args:
        info: Where it is.
        scratch: Buffer to read into; the next tensor that is read with it overwrites this one.

    Raises:
        SourceError: The file cannot be read, or it was truncated after its header was read.
    """
    buffer = (scratch or Scratch()).take("read", info.nbytes)
    view = buffer.numpy().data
    with reading(info.file), info.file.open("rb", buffering=0) as file:
        file.seek(info.start)
        done = 0
        while done < info.nbytes:
            count = file.readinto(view[done : done + _CHUNK])
            if not count:
                raise SourceError(f"{info.file} ends before its last tensor; download it again")
            done += count
    return buffer.view(DTYPES[info.dtype]).view(info.shape)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors from reading a file into a `SourceError`, since the output is not the cause."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from None


def _copy_range(source: TensorInfo, target: int) -> None:
    """Append the bytes of a stored tensor to the file descriptor `target`."""
    with reading(source.file):
        file = source.file.open("rb", buffering=0)
    with file:
        offset, left = source.start, source.nbytes
        in_kernel = hasattr(os, "copy_file_range")
        while left:
            if in_kernel:
                try:
                    count = os.copy_file_range(file.fileno(), target, min(left, 2**30), offset)
                except OSError:
                    count = 0
                # Between some file systems the kernel cannot copy, and from some it copies nothing without an error.
                # Reading and writing work everywhere, and their errors tell which of the two failed.
                in_kernel = count > 0
            else:
                with reading(source.file):
                    file.seek(offset)
                    data = file.read(min(left, _CHUNK))
                if not data:
                    raise SourceError(f"{source.file} ends before its last tensor; download it again")
                _write_all(target, data)
                count = len(data)
            offset += count
            left -= count


def _write_all(target: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def write_file(
    path: Path, tensors: Sequence[OutgoingTensor], *, progress: Callable[[int], None] | None = None
) -> None:
    """Write a safetensors file tensor by tensor, in the library's order (widest dtype first, then by name).

    Args:
        path: The new file.
        tensors: What it holds.
        progress: Called with the bytes of each tensor once it is written.

    Raises:
        OutputError: There is no space or no permission.
        SourceError: A source file cannot be read, or was truncated in the meantime.
    """
    ordered, header = _laid_out(tensors)
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_all(target, header)
            for tensor in ordered:
                _write_tensor(tensor, target)
                if progress is not None:
                    progress(tensor.nbytes)
        finally:
            os.close(target)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {os.strerror(error.errno or 0)}") from None


def _laid_out(tensors: Sequence[OutgoingTensor]) -> tuple[list[OutgoingTensor], bytes]:
    """Return the tensors of a file in its order, and all bytes before their values."""
    ordered = sorted(tensors, key=lambda tensor: (-DTYPES[tensor.dtype].itemsize, tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data has to start at a multiple of eight bytes
    return ordered, struct.pack("<Q", len(text)) + text


def file_nbytes(tensors: Sequence[OutgoingTensor]) -> int:
    """Return the bytes of the file that `write_file` writes: header, alignment and values. Nothing is made or read.

    Args:
        tensors: What it holds.
    """
    return len(_laid_out(tensors)[1]) + sum(tensor.nbytes for tensor in tensors)


def _write_tensor(tensor: OutgoingTensor, target: int) -> None:
    if tensor.is_copied:
        assert tensor.source is not None
        _copy_range(tensor.source, target)
        return
    for part in tensor.values():
        _write_all(target, part.numpy().data)


def overwrite_tensor(info: TensorInfo, tensor: torch.Tensor) -> None:
    """Overwrite a stored tensor with another of the same shape and dtype; the rest of the file does not change.

    Args:
        info: Where it is.
        tensor: The new values.
    """
    assert tuple(tensor.shape) == info.shape and tensor.dtype == DTYPES[info.dtype], info
    with info.file.open("r+b") as file:
        file.seek(info.start)
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def shard(tensors: Sequence[OutgoingTensor], max_shard_size: int) -> Mapping[str, list[OutgoingTensor]]:
    """Spread tensors over files as `save_pretrained` does, with its file names.

    Args:
        tensors: All tensors of the checkpoint, in the order of the model.
        max_shard_size: Maximum size of a file in bytes, unless a single tensor is larger.

    Returns:
        The tensors of each file, by file name.
    """
    split = split_state_dict_into_shards_factory(
        {tensor.name: tensor for tensor in tensors},
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    by_name = {tensor.name: tensor for tensor in tensors}
    return {file: [by_name[name] for name in names] for file, names in split.filename_to_tensors.items()}


def stored_names(expected: Collection[str], stored: Collection[str]) -> dict[str, str]:
    """Return under which name each expected tensor is stored.

    Files saved from a base model, such as the original GPT-2, lack its prefix: `h.0.ln_1.weight` instead of
    `transformer.h.0.ln_1.weight`. transformers loads them as if they had it.

    Args:
        expected: Names that the model class gives.
        stored: Names in the files.

    Returns:
        Expected name to stored name; a name that is stored neither way maps to itself.
    """
    names = {}
    for name in expected:
        short = name.partition(".")[2]
        names[name] = short if name not in stored and short in stored and short not in expected else name
    return names


def preview(names: list[str]) -> str:
    """Return the first eight names, and how many more there are, for a message."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
