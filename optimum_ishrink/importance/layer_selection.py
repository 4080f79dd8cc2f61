"""Which layers to remove, one after another or all in one span. The caller provides the cost of a removal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from ..architectures.layer_order import LayerRule
from ..errors import ShapeError


def choose_greedily(
    first_scores: torch.Tensor,
    score_again: Callable[[Sequence[int], tuple[int, ...]], torch.Tensor],
    count: int,
    removable: range,
    order: LayerRule | None = None,
    gone: Collection[int] = (),
) -> tuple[int, ...]:
    """Return the retained layers: remove the lowest scored, score the rest again without it, and repeat.

    Source: Shortened LLaMA, arXiv:2402.02834, whose one-shot choice this repeats. Redundant layers can be removed one
    by one, but not together: only scores after each removal show that.

    Args:
        first_scores: Importance of each layer with nothing removed, shape (layers,).
        score_again: Takes the layers that can still be removed, and the removed ones in the order of their removal;
            returns the importance of the former, shape (layers that can still be removed,).
        count: Layers of the result.
        removable: The layers that can be removed, at least as many as have to be.
        order: The order that the retained ones must come in; None for any, and left out where none come in it.
        gone: Layers that are removed in any case, at most as many as have to be.
    """
    total = len(first_scores)
    removed: tuple[int, ...] = tuple(sorted(gone))
    remaining = [layer for layer in removable if layer not in removed]
    again = 0 < len(removed) < total - count
    scores = score_again(remaining, removed) if again else first_scores[remaining]
    while total - len(removed) > count:
        candidates = [layer for layer in remaining if allows(order, {*removed, layer}, total, removable)]
        costs = {layer: float(score) for layer, score in zip(remaining, scores, strict=True)}
        removed = (*removed, min(candidates or remaining, key=lambda layer: costs[layer]))
        remaining.remove(removed[-1])
        if total - len(removed) > count:
            scores = score_again(remaining, removed)
    return tuple(layer for layer in range(total) if layer not in removed)


def allows(order: LayerRule | None, removed: Collection[int], total: int, removable: range) -> bool:
    """Return whether a result in an order can still be made when some layers are removed.

    Args:
        order: The order; None for any.
        removed: The removed layers.
        total: Layers of the model.
        removable: The layers that can be removed.
    """
    left = [layer for layer in range(total) if layer not in removed]
    return order is None or order.can_follow(left, removable)


def removable_spans(length: int, removable: range) -> list[tuple[int, int]]:
    """Return every span of adjacent layers that can be removed, as its first layer and the one after its last.

    Args:
        length: Layers to remove.
        removable: The layers that can be removed.
    """
    return [(start, start + length) for start in range(removable.start, removable.stop - length + 1)]


def spans_with(gone: Collection[int], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans that have some layers in them.

    Args:
        gone: The layers.
        spans: The spans.

    Raises:
        ShapeError: None has all of them.
    """
    found = [span for span in spans if set(gone) <= set(range(*span))]
    if spans and not found:
        raise ShapeError(
            f"no span of so many layers has layers {', '.join(map(str, sorted(gone)))}, which the larger model of the "
            "family has lost; choose layers with layer_selection one-shot or greedy"
        )
    return found


def choose_span(costs: torch.Tensor, spans: list[tuple[int, int]], total: int) -> tuple[int, ...]:
    """Return the retained layers when the cheapest span is removed; among equals the first.

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
