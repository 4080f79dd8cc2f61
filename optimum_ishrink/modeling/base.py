"""The part of a model below its head."""

from __future__ import annotations

from typing import Any


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
