"""Criteria: what each needs from the model, the function that computes it, and their registries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ..core.registry import Registry

Needs = Literal[
    "weights",
    "activations",
    "gradients",
    "changes",
    "gram",
    "hidden_states",
    "logits",
    "routing",
    "scores",
    "unit_scores",
]
Function = Callable[..., torch.Tensor]

_COSTS: dict[Needs, str] = {
    "weights": "weights only",
    "activations": "forward passes",
    "hidden_states": "forward passes",
    "routing": "forward passes, in which the experts run twice",
    "gram": "forward passes, and one matrix inverse per projection",
    "gradients": "forward and backward passes",
    "changes": "forward passes, and backward passes to the activations alone",
    "logits": "one pass for each removed unit or block, from its layer on",
    "scores": "the cost of its parts together",
    "unit_scores": "the cost of the unit criterion",
}


@dataclass(frozen=True)
class Criterion:
    """One criterion.

    Args:
        name: Its name on the command line.
        needs: What the engine has to give its function, and what the function returns:

            - `weights`: w; one value per weight, summed per unit.
            - `gradients`: w and dL/dw of one batch; one value per weight, summed per unit, averaged over batches.
            - `changes`: what leaves a unit (or what a layer adds) times the gradient there, of a loss whose labels are
              drawn from the model; one value per token, averaged.
            - `activations`: mean square of each input channel of the projection that reads the units, and that
              projection's weight; one value per channel, summed per unit.
            - `gram`: Gram matrix of that projection's inputs with its ridge, the weight, and each unit's channels; one
              value per unit.
            - `hidden_states`: what enters a block (or a span) and what leaves it; one value per token, averaged.
            - `logits`: the original logits, those with the unit (or the block) removed, and the tokens that
              followed; one value per token, averaged.
            - `routing`: what was observed of the experts of all layers, a `Routing`; one value per layer and expert.
            - `scores`: the scores of other criteria, `parts`; one value per unit.
            - `unit_scores`: the scores of every kind of unit; one value per layer.
        formula: The score in one line.
        reference: Where it comes from.
        function: Computes it; a pure function of tensors.
        of_sum: Applied to each unit's sum, of `gradients` before batches are averaged. None leaves the sums.
        parts: Names of the criteria that `scores` mixes.
        by_groups: Whether neurons are scored in groups by default, because one by one would take too many passes.
    """

    name: str
    needs: Needs
    formula: str
    reference: str
    function: Function
    of_sum: Function | None = None
    parts: tuple[str, ...] = ()
    by_groups: bool = False

    @property
    def cost(self) -> str:
        """Its cost, in words."""
        return _COSTS[self.needs]

    @property
    def reads_text(self) -> bool:
        """Whether it depends on calibration text."""
        return self.needs not in ("weights", "unit_scores")

    @property
    def measures_removal(self) -> bool:
        """Whether it can score the removal of any span of layers, also after others were removed."""
        return self.needs in ("logits", "hidden_states")

    @property
    def sees_experts(self) -> bool:
        """Whether it can score neurons of experts, which are no modules of their own."""
        if self.parts:
            return all(UNIT_CRITERIA[name].sees_experts for name in self.parts)
        return self.needs in ("weights", "gradients", "changes", "activations")

    def finish(self, sums: torch.Tensor) -> torch.Tensor:
        """Return the scores of units from their sums."""
        return sums if self.of_sum is None else self.of_sum(sums)


@dataclass(frozen=True)
class Routing:
    """Sums over the tokens that a router sent to each expert, float32, shape (layers, experts) each.

    Args:
        routed: Number of tokens that the expert was among the top k of.
        gates: Sum of its gate weights, as the layer uses them.
        norms: Sum of the L2 norms of its output, before the gate.
        gated_norms: Sum of the gate weight times that norm.
        tokens: Number of tokens, routed to the expert or not.
    """

    routed: torch.Tensor
    gates: torch.Tensor
    norms: torch.Tensor
    gated_norms: torch.Tensor
    tokens: int


UNIT_CRITERIA: Registry[Criterion] = Registry("importance", f"{__package__}.criteria")
EXPERT_CRITERIA: Registry[Criterion] = Registry("expert importance", f"{__package__}.criteria")
LAYER_CRITERIA: Registry[Criterion] = Registry("layer importance", f"{__package__}.criteria")


def _registering(
    registry: Registry[Criterion], name: str, needs: Needs, **details: object
) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        registry.register(name)(Criterion(name, needs, function=function, **details))  # type: ignore[arg-type]
        return function

    return add


def unit_criterion(
    name: str,
    *,
    needs: Needs,
    formula: str,
    reference: str,
    of_sum: Function | None = None,
    parts: tuple[str, ...] = (),
    by_groups: bool = False,
) -> Callable[[Function], Function]:
    """Return a decorator that registers a criterion for KV groups, query heads and MLP neurons."""
    details = {"formula": formula, "reference": reference, "of_sum": of_sum, "parts": parts, "by_groups": by_groups}
    return _registering(UNIT_CRITERIA, name, needs, **details)


def expert_criterion(
    name: str, *, needs: Needs, formula: str, reference: str, of_sum: Function | None = None
) -> Callable[[Function], Function]:
    """Return a decorator that registers a criterion for experts."""
    return _registering(EXPERT_CRITERIA, name, needs, formula=formula, reference=reference, of_sum=of_sum)


def layer_criterion(
    name: str, *, needs: Needs, formula: str, reference: str, of_sum: Function | None = None
) -> Callable[[Function], Function]:
    """Return a decorator that registers a criterion for layers."""
    return _registering(LAYER_CRITERIA, name, needs, formula=formula, reference=reference, of_sum=of_sum)
