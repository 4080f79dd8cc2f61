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
    removable = range(keep_first, total - keep_last)
    if total - count > len(removable):
        raise ShapeError(
            f"cannot remove {total - count} of {total} layers: keep_first_layers={keep_first} and "
            f"keep_last_layers={keep_last} leave {max(0, len(removable))} that may go"
        )
    # A stable order makes equal scores, and so the plan, reproducible.
    ascending = sorted(removable, key=lambda layer: (float(scores[layer]), layer))
    gone = set(ascending[: total - count])
    return tuple(layer for layer in range(total) if layer not in gone)


def choose_units(scores: torch.Tensor, layers: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    """Return, for each layer that stays, the indices of its `count` highest scored units.

    Every layer keeps the same number, because a Hugging Face config has one integer per dimension; so scores are only
    compared within a layer, where units have the same size.

    Args:
        scores: Importance of each unit, shape (layers, units).
        layers: The layers that stay.
        count: Units that stay in each.
    """
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :count]
    kept = order.sort(dim=1).values.tolist()
    return tuple(tuple(kept[layer]) for layer in layers)
