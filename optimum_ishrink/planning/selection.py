"""From scores to what stays: the lowest scored go."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import ShapeError


def default_protection(num_layers: int) -> tuple[int, int]:
    """Return how many first and last layers are protected when nothing is said.

    Four and two, as in the iShrink thesis: the first blocks build the representation that all others refine and the
    last ones turn it into logits. In models of fewer than 16 layers, a quarter and an eighth.

    Args:
        num_layers: Layers of the model.
    """
    return min(4, num_layers // 4), min(2, num_layers // 8)


def removable_layers(total: int, count: int, keep_first: int, keep_last: int) -> range:
    """Return the layers that may go.

    Args:
        total: Layers of the model.
        count: Layers that stay.
        keep_first: Layers at the beginning that always stay.
        keep_last: Layers at the end that always stay.

    Raises:
        ShapeError: The protected layers leave too few to remove.
    """
    removable = range(keep_first, total - keep_last)
    if total - count > len(removable):
        raise ShapeError(
            f"cannot remove {total - count} of {total} layers: keep_first_layers={keep_first} and "
            f"keep_last_layers={keep_last} leave {max(0, len(removable))} that may go"
        )
    return removable


def choose_layers(scores: torch.Tensor, count: int, keep_first: int, keep_last: int) -> tuple[int, ...]:
    """Return the indices of the `count` layers that stay.

    Args:
        scores: Importance of each layer, shape (layers,); higher stays.
        count: Layers that stay.
        keep_first: Layers at the beginning that always stay.
        keep_last: Layers at the end that always stay.

    Raises:
        ShapeError: The protected layers leave too few to remove.
    """
    total = scores.shape[0]
    removable = removable_layers(total, count, keep_first, keep_last)
    # A stable order makes equal scores, and so the plan, reproducible.
    ascending = sorted(removable, key=lambda layer: (float(scores[layer]), layer))
    gone = set(ascending[: total - count])
    return tuple(layer for layer in range(total) if layer not in gone)


def choose_units(
    scores: torch.Tensor, layers: Sequence[int], count: int, *, experts: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Return, for each layer that stays, the indices of its `count` highest scored units.

    Every layer keeps the same number, because a Hugging Face config has one integer per dimension; so scores are only
    compared within a layer, where units have the same size. The same goes for the experts of a layer.

    Args:
        scores: Importance of each unit, shape (layers, units).
        layers: The layers that stay.
        count: Units that stay in each layer, or in each of its experts.
        experts: Experts in a layer, whose units lie one after another.
    """
    width = scores.shape[1] // experts
    order = torch.sort(scores.view(-1, experts, width), dim=2, descending=True, stable=True).indices[..., :count]
    kept = order.sort(dim=2).values + width * torch.arange(experts)[:, None]
    rows = kept.flatten(1).tolist()
    return tuple(tuple(rows[layer]) for layer in layers)


def choose_heads(
    scores: torch.Tensor | None, groups: Sequence[Sequence[Sequence[int]]], layers: Sequence[int], count: int
) -> tuple[tuple[int, ...], ...]:
    """Return, for each layer that stays, its query heads in their new order.

    Args:
        scores: Importance of each query head, shape (layers, heads); None when every head of a group stays.
        groups: For each layer that stays and each new KV head, the query heads that may read it.
        layers: The layers that stay.
        count: Query heads that stay for each new KV head.
    """
    chosen = []
    for layer, layer_groups in zip(layers, groups, strict=True):
        kept: list[int] = []
        for heads in layer_groups:
            best = heads
            if len(heads) > count:
                assert scores is not None
                row = scores[layer]
                best = sorted(heads, key=lambda head: (-float(row[head]), head))[:count]
            kept += sorted(best)
        chosen.append(tuple(kept))
    return tuple(chosen)


def group_similar(similarity: torch.Tensor, count: int) -> tuple[tuple[int, ...], ...]:
    """Return groups of equal size of the most similar heads: the closest pair first, then what is closest to it.

    Args:
        similarity: Symmetric, shape (heads, heads).
        count: Number of groups; it divides the number of heads.
    """
    left = list(range(len(similarity)))
    size = len(left) // count
    groups = []
    while left:
        group: list[int] = []
        while len(group) < size:
            seeds = group or left

            def closeness(head: int, seeds: list[int] = seeds) -> tuple[float, int]:
                return max(float(similarity[head, seed]) for seed in seeds if seed != head), -head

            free = [head for head in left if head not in group]
            group.append(max(free, key=closeness) if len(free) + len(group) > 1 else free[0])
        groups.append(tuple(sorted(group)))
        left = [head for head in left if head not in group]
    return tuple(sorted(groups))
