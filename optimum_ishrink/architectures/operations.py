"""Floating-point operations of one token: the products with weights, and those of attention."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from .axes import layers_with
from .binding import Binding
from .expressions import axis_length


def active_parameters(binding: Binding, shape: Mapping[str, int]) -> float:
    """Return the parameters that a token is multiplied with: of experts those that it is routed to.

    An embedding is looked up, so it counts only where it is the head as well.

    Args:
        binding: The model.
        shape: Sizes by config key.
    """
    sizes = binding.resized(shape)
    share = (sizes.get("top_k") or 1) / (sizes.get("experts") or 1)
    total, vocabularies = 0.0, []
    for tensor in binding.tensors.values():
        # Outside the layers only what has the vocabulary's rows is a product: a table of positions is looked up.
        kept = tensor.counts("vocab") if tensor.layer is None else tensor.layer < sizes["layers"]
        if len(tensor.axes) < 2 or not kept or (tensor.expert or 0) >= max(sizes.get("experts") or 1, 1):
            continue
        numel = prod(axis_length(axis, sizes) for axis in tensor.axes)
        fused = len(tensor.axes) > 2 and tensor.counts("experts")
        total += numel * (share if fused or tensor.expert is not None else 1.0)
        if tensor.layer is None and tensor.counts("vocab"):
            vocabularies.append(numel)
    return total - (min(vocabularies) if len(vocabularies) > 1 else 0)


def attention_operations(binding: Binding, length: int) -> float:
    """Return the operations of attention for one token of a window: scores, and sums of values.

    A token attends to half of the window on average. A window of fewer tokens, as some layers have, and linear
    attention take less; in windows of recovery's length that is a small part of the whole.

    Args:
        binding: The model.
        length: Tokens in a window.
    """
    sizes = binding.sizes
    return 2.0 * len(layers_with(binding, "num_attention_heads")) * length * sizes["heads"] * sizes["head_dim"]
