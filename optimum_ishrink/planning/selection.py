"""From scores to what is retained: the lowest scored layers and units are removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..architectures.layer_order import LayerRule
from .protection import removable_layers


def choose_layers(
    scores: torch.Tensor, count: int, keep_first: int, keep_last: int, order: LayerRule | None = None
) -> tuple[int, ...]:
    """Return the indices of the `count` retained layers.

    Args:
        scores: Importance of each layer, shape (layers,); higher is better.
        count: Retained layers.
        keep_first: Protected layers at the beginning.
        keep_last: Protected layers at the end.
        order: The order that what the layers are must come in; None for any. It is left out of account where no
            layers come in it.

    Raises:
        ShapeError: The protected layers leave too few to remove.
    """
    total = scores.shape[0]
    removable = removable_layers(total, count, keep_first, keep_last)
    in_order = None if order is None else order.choose(scores.tolist(), removable)
    if in_order is not None:
        return in_order
    # A stable order makes equal scores, and so the plan, reproducible.
    ascending = sorted(removable, key=lambda layer: (float(scores[layer]), layer))
    removed = set(ascending[: total - count])
    return tuple(layer for layer in range(total) if layer not in removed)


def choose_units(
    scores: torch.Tensor, layers: Sequence[int], count: int, *, groups: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Return, for each retained layer, the indices of its `count` highest scored units.

    Every layer retains the same number, because a Hugging Face config has one integer per dimension; so scores are
    only compared within a layer, where units have the same size. The same holds for the experts of a layer, and for
    groups of experts.

    Args:
        scores: Importance of each unit, shape (layers, units).
        layers: The retained layers.
        count: Retained units of each layer, or of each of its groups.
        groups: Groups of a layer, such as its experts; their units are stored one after another.
    """
    width = scores.shape[1] // groups
    order = torch.sort(scores.view(-1, groups, width), dim=2, descending=True, stable=True).indices[..., :count]
    retained = order.sort(dim=2).values + width * torch.arange(groups)[:, None]
    rows = retained.flatten(1).tolist()
    return tuple(tuple(rows[layer]) for layer in layers)


def choose_heads(
    scores: torch.Tensor | None, groups: Sequence[Sequence[Sequence[int]]], layers: Sequence[int], count: int
) -> tuple[tuple[int, ...], ...]:
    """Return, for each retained layer, its retained query heads in their new order.

    Args:
        scores: Importance of each query head, shape (layers, heads); None when all heads of a group are retained.
        groups: For each retained layer and each new KV head, the query heads that can read it.
        layers: The retained layers.
        count: Retained query heads for each new KV head.
    """
    chosen = []
    for layer, layer_groups in zip(layers, groups, strict=True):
        retained: list[int] = []
        for heads in layer_groups:
            best = heads
            if len(heads) > count:
                assert scores is not None
                row = scores[layer]
                best = sorted(heads, key=lambda head: (-float(row[head]), head))[:count]
            retained += sorted(best)
        chosen.append(tuple(retained))
    return tuple(chosen)


def group_similar(similarity: torch.Tensor, count: int) -> tuple[tuple[int, ...], ...]:
    """Return groups of equal size of the most similar heads: the closest pair first, then the heads closest to it.

    Args:
        similarity: Symmetric, shape (heads, heads).
        count: Number of groups; it divides the number of heads.
    """
    remaining = list(range(len(similarity)))
    size = len(remaining) // count
    groups = []
    while remaining:
        group: list[int] = []
        while len(group) < size:
            seeds = group or remaining

            def closeness(head: int, seeds: list[int] = seeds) -> tuple[float, int]:
                return max(float(similarity[head, seed]) for seed in seeds if seed != head), -head

            free = [head for head in remaining if head not in group]
            group.append(max(free, key=closeness) if len(free) + len(group) > 1 else free[0])
        groups.append(tuple(sorted(group)))
        remaining = [head for head in remaining if head not in group]
    return tuple(sorted(groups))
