"""A head that equals the embedding, to the bit or but for quantisation, although the config does not tie the two.

GGUF files of tied models often hold both, each quantised in its own way, and some training code saves a tied model as
an untied one. Such a head is only weight: the embedding can stand in for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import torch

from ..architectures.binding import Binding
from ..architectures.description import DIMENSIONS, HEADS, ROWS
from ..checkpoint.tensors import TensorInfo, read_tensor
from ..core.scratch import Scratch
from ..report.tied_head import HeadRecord

LIMIT = 0.15
"""The largest difference of the whole, relative to the embedding, that quantisation explains.

Blocks of 32 weights of 4 bits (q4_0) change the embeddings of two compact models by 0.111 and 0.105 of
their norm, and two different 4-bit quantisations of one embedding are 0.142 and 0.135 apart. The head of a model that
was trained untied is about as far from its embedding as any other matrix: 1.4 where both are as large.
"""

ROW_LIMIT = 0.3
"""The same of a single row. A few rows may have been trained alone, such as those of new special tokens.

The largest among 16,384 rows of these two models with two 4-bit quantisations: 0.195 and 0.223.
"""

_SAMPLE = 256
"""Rows that are compared first: enough to tell that a head is another matrix, without reading it."""

_FLOOR = 0.05
"""Rows shorter than this share of the usual length are compared with that."""

_PIECE = 16 * 2**20
_NEIGHBOURS = 16


def compare_head(tensors: Mapping[str, TensorInfo], binding: Binding) -> HeadRecord | None:
    """Compare a head with the embedding.

    Of a head that is another matrix only a few rows are read. Otherwise both are read as a whole, in pieces.

    Args:
        tensors: The model's tensors.
        binding: The model.

    Returns:
        How far they are apart; None where the model has no head of its own that the embedding could stand in for.
    """
    size = DIMENSIONS[ROWS]
    outer = [bound for bound in binding.tensors.values() if bound.layer is None and bound.counts(size)]
    heads = [bound for bound in outer if bound.name in HEADS]
    embeddings = [bound for bound in outer if len(bound.axes) == 2 and bound not in heads]
    embeddings = [bound for bound in embeddings if len(heads) == 1 and bound.axes == heads[0].axes]
    if len(heads) != 1 or len(embeddings) != 1:
        return None
    names = embeddings[0].name, heads[0].name
    embedding, head = tensors[names[0]], tensors[names[1]]
    count = embedding.shape[0]
    sample = [(row, row + 1) for row in range(0, count, max(1, count // _SAMPLE))]
    apart = _distance(embedding, head, sample)
    if not apart[0] > LIMIT:
        rows = max(1, _PIECE // (max(embedding.nbytes, head.nbytes) // count))
        apart = _distance(embedding, head, [(row, min(row + rows, count)) for row in range(0, count, rows)])
    return HeadRecord(*names, *apart, _levels(embedding, sample), _levels(head, sample), prod(head.shape))


def is_near(record: HeadRecord) -> bool:
    """Whether quantisation explains how far a head is from the embedding.

    Args:
        record: How far it is.
    """
    return record.relative_error <= LIMIT and record.largest_row_error <= ROW_LIMIT


def _distance(embedding: TensorInfo, head: TensorInfo, spans: Iterable[tuple[int, int]]) -> tuple[float, float, float]:
    """Return the relative difference of some rows, of the row that differs most, and the cosine."""
    sums: list[list[torch.Tensor]] = []
    one, other = Scratch(), Scratch()
    for span in spans:
        first, second = (
            read_tensor(info.rows(*span), scratch).float() for info, scratch in ((embedding, one), (head, other))
        )
        pairs = ((first, first), (second, second), (first, second), (first - second, first - second))
        sums.append([torch.linalg.vecdot(a, b).double() for a, b in pairs])
    ours, theirs, both, apart = (torch.cat(each) for each in zip(*sums, strict=True))
    # Rows without a token may be next to nothing, and as near to nothing as to one another.
    scale = torch.maximum(ours, theirs).clamp_min(float(ours.mean()) * _FLOOR**2)
    total = ours.sum() * theirs.sum()
    return (
        float((apart.sum() / ours.sum()).sqrt()),
        float((apart / scale).amax().sqrt()),
        float(both.sum() / total.sqrt()),
    )


def _levels(info: TensorInfo, spans: Iterable[tuple[int, int]]) -> float:
    """Return how many different values there are among 16 consecutive weights, on average over some rows."""
    found = torch.cat([read_tensor(info.rows(*span)).float() for span in spans])
    groups = found[:, : found.shape[1] // _NEIGHBOURS * _NEIGHBOURS].reshape(-1, _NEIGHBOURS).sort(dim=1).values
    return float((groups.diff(dim=1) != 0).sum(dim=1).double().mean() + 1)
