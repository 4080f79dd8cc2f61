"""The experts of a loaded model, which transformers fuses into one module for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..architectures.axes import stacked_experts
from ..architectures.binding import Binding


def expert_modules(model: Any, binding: Binding) -> dict[int, Any]:
    """Return the module that holds the experts of each layer that has any.

    Args:
        model: The loaded model.
        binding: Its binding.
    """
    there = {name for name, _ in model.named_parameters()}
    return {
        layer: model.get_submodule(stacked[0].name.rpartition(".")[0])
        for layer, stacked in stacked_experts(binding, there).items()
    }


def gather_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """Return what a module of experts is called with: hidden states, the chosen experts, and their gate weights.

    Args:
        args: Its positional arguments.
        kwargs: Its keyword arguments, in the same order.

    Returns:
        Hidden states, shape (..., hidden); indices and weights of the chosen experts, shape (..., top k).
    """
    hidden, chosen, weights = (*args, *kwargs.values())
    return hidden, chosen, weights
