"""Which layers are protected, and which can be removed."""

from __future__ import annotations

from ..architectures.binding import Binding
from ..errors import ShapeError


def default_protection(num_layers: int) -> tuple[int, int]:
    """Return how many first and last layers are protected by default.

    Four and two, as in the iShrink thesis: the first blocks build the representation that all others refine and the
    last ones turn it into logits. In models of fewer than 16 layers, a quarter and an eighth.

    Args:
        num_layers: Layers of the model.
    """
    return min(4, num_layers // 4), min(2, num_layers // 8)


def first_reason(binding: Binding, first: int) -> str:
    """Return why a model's first layers have to stay, to follow a message; empty where none have to.

    Args:
        binding: The model.
        first: How many first layers are protected.
    """
    if not binding.first_layers or first > binding.first_layers:
        return ""
    return f" (the first {binding.first_layers} layers always stay: {binding.first_reason})"


def removable_layers(total: int, count: int, keep_first: int, keep_last: int, reason: str = "") -> range:
    """Return the layers that can be removed.

    Args:
        total: Layers of the model.
        count: Layers of the result.
        keep_first: Protected layers at the beginning.
        keep_last: Protected layers at the end.
        reason: What follows the message, from `first_reason`.

    Raises:
        ShapeError: The protected layers leave too few to remove.
    """
    removable = range(keep_first, total - keep_last)
    if total - count > len(removable):
        raise ShapeError(
            f"cannot remove {total - count} of {total} layers: keep_first_layers={keep_first} and "
            f"keep_last_layers={keep_last} leave {max(0, len(removable))} that can be removed{reason}"
        )
    return removable
