"""Checking a requested shape against a model, and the nearest shapes that it can express."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ShapeError
from .binding import Binding


def nearest_expressible(binding: Binding, key: str, value: int, shape: Mapping[str, int]) -> list[int]:
    """Return the nearest values of a dimension, below and above `value`, that the model can express.

    Args:
        binding: The model.
        key: The dimension's config key.
        value: The requested value.
        shape: The rest of the requested shape.
    """
    fits = [v for v in range(1, binding.shape[key] + 1) if binding.refusal({**shape, key: v}) is None]
    below = [v for v in fits if v < value][-1:]
    above = [v for v in fits if v > value][:1]
    return below + above


def check_shape(binding: Binding, shape: Mapping[str, int], *, allow_class_change: bool = False) -> None:
    """Check that a shape can be expressed.

    Args:
        binding: The model.
        shape: New values by config key.
        allow_class_change: Whether it may be written as another class that computes the same function.

    Raises:
        ShapeError: It cannot; the message names the nearest values that can.
    """
    reason = binding.refusal(shape, allow_class_change=allow_class_change)
    if reason is None:
        return
    for key, value in shape.items():
        if key not in binding.shape or binding.description.dimensions[key].fixed:
            continue
        rest = {k: min(v, binding.shape[k]) for k, v in shape.items() if k != key and k in binding.shape}
        near = nearest_expressible(binding, key, value, rest)
        if binding.refusal({key: value}) is not None and near:
            raise ShapeError(f"{reason}; nearest {key}: {' or '.join(map(str, near))}")
    raise ShapeError(reason)
