"""Which layers go, where one after another or all in one span. What a removal costs is asked of the caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..planning.selection import removable_layers

SELECTIONS = ("one-shot", "greedy", "contiguous")
"""The lowest scored; the lowest again after each removal; or the span of adjacent layers with the lowest cost."""


def choose_greedily(
    first_scores: torch.Tensor,
    score_again: Callable[[Sequence[int], tuple[int, ...]], torch.Tensor],
    count: int,
    keep_first: int,
    keep_last: int,
) -> tuple[int, ...]:
    """Return the layers that stay when the lowest scored goes, the rest is scored again without it, and so on.

    Source: Shortened LLaMA, arXiv:2402.02834, whose one-shot choice this repeats. Layers that say the same are each
    dispensable, but not together: scoring again sees that.

    Args:
        first_scores: Importance of each layer with nothing removed, shape (layers,).
        score_again: Takes the layers that may still go and those that are gone, in the order in which they went;
            gives the importance of the former, shape (layers that may go,).
        count: Layers that stay.
        keep_first: Layers at the beginning that always stay.
        keep_last: Layers at the end that always stay.

    Raises:
        ShapeError: The protected layers leave too few to remove.
    """
    total = len(first_scores)
    left = list(removable_layers(total, count, keep_first, keep_last))
    gone: tuple[int, ...] = ()
    scores = first_scores[left]
    while total - len(gone) > count:
        gone = (*gone, left.pop(int(scores.argmin())))
        if total - len(gone) > count:
            scores = score_again(left, gone)
    return tuple(layer for layer in range(total) if layer not in gone)


def removable_spans(total: int, count: int, keep_first: int, keep_last: int) -> list[tuple[int, int]]:
    """Return every span of adjacent layers that could go, as its first layer and the one behind its last.

    Args:
        total: Layers of the model.
        count: Layers that stay.
        keep_first: Layers at the beginning that always stay.
        keep_last: Layers at the end that always stay.

    Raises:
        ShapeError: The protected layers leave too few to remove.
    """
    free = removable_layers(total, count, keep_first, keep_last)
    length = total - count
    return [(start, start + length) for start in range(free.start, free.stop - length + 1)]


def choose_span(costs: torch.Tensor, spans: list[tuple[int, int]], total: int) -> tuple[int, ...]:
    """Return the layers that stay when the cheapest span goes, the first of equals.

    Source: Gromov et al. 2024, arXiv:2403.17887.

    Args:
        costs: Cost of removing each span, shape (spans,).
        spans: The spans.
        total: Layers of the model.
    """
    start, stop = spans[int(costs.argmin())]
    return (*range(start), *range(stop, total))


def summed_costs(scores: torch.Tensor, spans: list[tuple[int, int]]) -> torch.Tensor:
    """Return each span's cost as the sum of its layers' scores.

    Args:
        scores: Importance of each layer, shape (layers,).
        spans: The spans.
    """
    return torch.stack([scores[start:stop].sum() for start, stop in spans])
