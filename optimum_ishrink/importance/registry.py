"""The criteria that exist: what each needs from the model, and the function that computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ..registry import Registry

Needs = Literal["weights", "activations", "gradients", "hidden_states"]


@dataclass(frozen=True)
class Criterion:
    """One criterion.

    Args:
        name: Its name on the command line.
        needs: What the engine has to give its function: `weights` (w), `activations` (mean square of each input
            channel of the projection that reads the units, and that projection's weight), `gradients` (w and dL/dw),
            or `hidden_states` (a block's input and output).
        formula: The score in one line.
        reference: Where it comes from.
        function: Computes one value per weight, channel or token; the engine sums it per unit or averages it per
            layer.
    """

    name: str
    needs: Needs
    formula: str
    reference: str
    function: Callable[..., torch.Tensor]


UNIT_CRITERIA: Registry[Criterion] = Registry("importance", f"{__package__}.criteria")
LAYER_CRITERIA: Registry[Criterion] = Registry("layer importance", f"{__package__}.criteria")


Decorator = Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]


def _registering(registry: Registry[Criterion], name: str, needs: Needs, formula: str, reference: str) -> Decorator:
    def add(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        registry.register(name)(Criterion(name, needs, formula, reference, function))
        return function

    return add


def unit_criterion(name: str, *, needs: Needs, formula: str, reference: str) -> Decorator:
    """Return a decorator that registers a criterion for KV groups and MLP neurons."""
    return _registering(UNIT_CRITERIA, name, needs, formula, reference)


def layer_criterion(name: str, *, needs: Needs, formula: str, reference: str) -> Decorator:
    """Return a decorator that registers a criterion for layers."""
    return _registering(LAYER_CRITERIA, name, needs, formula, reference)
