"""Cutting what lies outside the layers: rows of the vocabulary, and a head that the embedding can stand in for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..architectures.binding import Binding, BoundTensor
from ..architectures.description import DIMENSIONS, ROWS
from ..architectures.expressions import axis_length, parse_axes
from ..architectures.slicing import slice_tensor, take
from ..checkpoint.tensors import OutgoingTensor, TensorInfo, read_tensor
from ..checkpoint.writing import compare_written, verify_checkpoint, write_weights
from ..core.scratch import Scratch
from ..report.tied_head import HeadRecord

_SIZE = DIMENSIONS[ROWS]
_ROWS = parse_axes(_SIZE)[0]

_PIECE = 4 * 2**20
"""Bytes of an embedding that are in memory at a time. It can be the largest tensor by far, and pieces that fit the
processor's cache are read three times as fast as larger ones."""


def outgoing_embeddings(
    tensors: Mapping[str, TensorInfo],
    binding: Binding,
    rows: Sequence[int] | None = None,
    head: HeadRecord | None = None,
) -> list[OutgoingTensor]:
    """Return the tensors of a checkpoint whose vocabulary is cut or whose head is tied; nothing is read yet.

    Args:
        tensors: The source's tensors.
        binding: The model.
        rows: The rows that stay, ascending; None for all.
        head: The head that is tied to the embedding; None leaves it as it is.
    """
    new_sizes = binding.sizes if rows is None else {**binding.sizes, _SIZE: len(rows)}
    scratch = Scratch()
    outgoing = []
    for bound in binding.tensors.values():
        if head is not None and bound.name == head.head:
            continue
        info = tensors[head.retained if head is not None and bound.name == head.embedding else bound.name]
        name = tensors[bound.name].stored_as or bound.name
        if rows is None or not bound.counts(_SIZE):
            outgoing.append(OutgoingTensor(name, info.dtype, info.shape, source=info))
            continue
        shape = tuple(axis_length(axis, new_sizes) for axis in bound.axes)
        outgoing.append(
            OutgoingTensor(name, info.dtype, shape, pieces=partial(_pieces, info, rows, scratch))
            if bound.axes[0] == _ROWS and not _counts_again(bound)
            else OutgoingTensor(name, info.dtype, shape, make=partial(_cut, scratch, info, bound, binding.sizes, rows))
        )
    return outgoing


def _counts_again(bound: BoundTensor) -> bool:
    return any(_SIZE in section.factors for axis in bound.axes[1:] for section in axis)


def _pieces(info: TensorInfo, rows: Sequence[int], scratch: Scratch) -> Iterator[torch.Tensor]:
    """Yield the rows of a tensor, some megabytes at a time; long runs of removed rows are not read."""
    kept = np.asarray(rows)
    most = max(1, _PIECE // (info.nbytes // info.shape[0]))
    start = 0
    while start < len(kept):
        first = int(kept[start])
        end = int(np.searchsorted(kept, first + most))
        inside = kept[start:end] - first
        found = read_tensor(info.rows(first, int(kept[end - 1]) + 1), scratch)
        yield found if len(found) == len(inside) else take(found, 0, torch.from_numpy(inside), scratch)
        start = end


def _cut(
    scratch: Scratch, info: TensorInfo, bound: BoundTensor, sizes: Mapping[str, int], rows: Sequence[int]
) -> torch.Tensor:
    return slice_tensor(read_tensor(info, scratch), bound, sizes, {_SIZE: rows}, scratch)


def write_embeddings(
    tensors: Mapping[str, TensorInfo],
    binding: Binding,
    folder: Path,
    rows: Sequence[int] | None = None,
    head: HeadRecord | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the weights of a checkpoint whose vocabulary is cut or whose head is tied, and verify them.

    Args:
        tensors: The source's tensors.
        binding: The model.
        folder: Where the new config.json is already.
        rows: The rows that stay, ascending; None for all.
        head: The head that is tied to the embedding; None leaves it as it is.
        progress: Called with the number of bytes of each tensor once it is written.

    Raises:
        OutputError: There is no space left, or no permission to write.
        VerificationError: The result is not what its config's model class expects, or not what was cut.
    """
    outgoing = outgoing_embeddings(tensors, binding, rows, head)
    write_weights(outgoing, folder, progress=progress)
    verify_checkpoint(folder, {tensor.name: tensor.dtype for tensor in outgoing})
    compare_written(outgoing, folder)
