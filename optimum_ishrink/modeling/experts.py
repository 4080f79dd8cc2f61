"""The experts of a loaded model, which transformers fuses into one module for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..architectures.axes import down_projection, stacked_experts
from ..architectures.binding import Binding
from ..errors import RequestError


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


@dataclass(frozen=True)
class FusedExperts:
    """The experts of one layer.

    Args:
        name: Name of their module.
        module: The module.
        weight: The projection that goes down to the hidden size, of all experts.
        transposed: Whether it stores (in, out).
        bias: Its bias, shape (experts, hidden), or None.
    """

    name: str
    module: Any
    weight: torch.Tensor
    transposed: bool
    bias: torch.Tensor | None = None

    def matrix(self, expert: int) -> torch.Tensor:
        """Return the projection of one expert, shape (out, in)."""
        weight = self.weight.detach()[expert]
        return weight.T if self.transposed else weight


def fused_experts(model: Any, binding: Binding) -> dict[int, FusedExperts]:
    """Return the experts of each layer that has any.

    Args:
        model: The loaded model; it can have fewer layers and experts than its base.
        binding: Its binding, or its base's.
    """
    parameters = dict(model.named_parameters())
    found = {}
    for layer, stacked in stacked_experts(binding, parameters).items():
        down, transposed = down_projection(stacked)
        name = down.name.rpartition(".")[0]
        bias = parameters.get(f"{down.name}_bias")
        found[layer] = FusedExperts(name, model.get_submodule(name), parameters[down.name], transposed, bias)
    return found


def gather_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """Return what a module of experts is called with: hidden states, the chosen experts, and their gate weights.

    Args:
        args: Its positional arguments.
        kwargs: Its keyword arguments, in the same order.

    Returns:
        Hidden states, shape (..., hidden); indices and weights of the chosen experts, shape (..., top k).

    Raises:
        RequestError: It is called with something else.
    """
    given = (*args, *kwargs.values())
    if len(given) != 3:
        raise RequestError(
            "the experts of this model are not called with the tokens and the experts that each is routed to, so that "
            "what they read cannot be observed; use --importance l2-norm or taylor"
        )
    hidden, chosen, weights = given
    return hidden, chosen, weights


@contextmanager
def one_by_one(model: Any) -> Iterator[None]:
    """Let a model run its experts one after another, each in matrix products of its own that can be observed.

    Args:
        model: The model.
    """
    config = model.config
    before = config._experts_implementation
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = before


class DownProjections(TorchFunctionMode):
    """Observes what every expert's projection to the hidden size reads, while experts run one by one.

    A fused projection is no module that a hook could be registered on: it is a matrix product with a slice of one
    parameter, and by that slice it is recognised.

    Args:
        weights: The projections of all experts, by layer.
        read: Called with the layer, the expert and the inputs, shape (tokens, in), the tokens in ascending order of
            their place among the chosen experts, and then of the token.
    """

    def __init__(self, weights: Mapping[int, torch.Tensor], read: Callable[[int, int, torch.Tensor], None]) -> None:
        super().__init__()
        self._weights = weights
        self._read = read

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, and observe it if it is such a product."""
        if getattr(function, "__name__", "") in _PRODUCTS and len(args) > 1 and isinstance(args[1], torch.Tensor):
            layer = self._layer_of(args[1]) if args[1].dim() == 2 else None
            if layer is not None:
                whole = self._weights[layer]
                offset = args[1].storage_offset() - whole.storage_offset()
                self._read(layer, offset // whole.stride(0), args[0])
        return function(*args, **(kwargs or {}))

    def _layer_of(self, matrix: torch.Tensor) -> int | None:
        """Return the layer whose projections a matrix is a slice of. A weight may move: those on disk come and go."""
        address = matrix.untyped_storage().data_ptr()
        found = (layer for layer, whole in self._weights.items() if whole.untyped_storage().data_ptr() == address)
        return next(found, None)


_PRODUCTS = ("linear", "matmul", "__matmul__", "mm")


@torch.no_grad()
def expert_inputs(experts: FusedExperts, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    """Return what one expert's projection to the hidden size reads, in a model that runs its experts one by one.

    Args:
        experts: The experts of the layer.
        expert: Which one.
        hidden: What it reads, shape (tokens, hidden).

    Returns:
        Shape (tokens, in).
    """
    seen: list[torch.Tensor] = []
    chosen = torch.full((len(hidden), 1), expert, dtype=torch.int64, device=hidden.device)
    with DownProjections({0: experts.weight}, lambda _, __, inputs: seen.append(inputs)):
        experts.module(hidden, chosen, torch.ones_like(chosen, dtype=hidden.dtype))
    (inputs,) = seen
    return inputs
