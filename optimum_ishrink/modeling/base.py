"""The part of a model below its head, and its layers."""

from __future__ import annotations

from typing import Any

from ..architectures.axes import layer_module
from ..architectures.binding import Binding


def base_of(model: Any) -> Any:
    """Return the part of a model that computes its hidden states.

    `base_model` is the model itself where its class names another prefix than its attribute. Then it is the one part
    that is a model of its own. Where the class calls the decoder within it instead, that is returned.

    Args:
        model: A causal language model.
    """
    base = model.base_model
    if base is not model:
        return getattr(base, "decoder", base)
    (part,) = (child for child in model.children() if hasattr(child, "config"))
    return part


def layers_of(model: Any, binding: Binding, count: int | None = None) -> list[Any]:
    """Return the layers of a model.

    Args:
        model: The model, or its base.
        binding: Its binding, or that of the model that it was cut from.
        count: Its layers, where a cut has fewer than its binding.
    """
    numbers = range(binding.sizes["layers"] if count is None else count)
    return [model.get_submodule(layer_module(binding, layer)) for layer in numbers]
