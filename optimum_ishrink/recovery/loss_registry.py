"""The recovery losses that exist: what each reads, and the function that computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ..core.registry import Registry

Reads = Literal["logits", "hidden_states", "values"]


@dataclass(frozen=True)
class Loss:
    """One loss.

    Args:
        name: Its name on the command line.
        reads: What the training step has to give its function: `logits` (chunks of positions: the student's logits
            and a `Targets`), `hidden_states` (one layer's output in student and teacher) or `values` (one layer's
            attention values in student and teacher).
        teacher: Whether it compares with a teacher.
        labels: Whether it reads labels, and so counts labelled tokens only.
        formula: The loss in one line.
        reference: Where it comes from.
        function: Returns one value per token, so that every loss is normalised over a whole step in the same way.
    """

    name: str
    reads: Reads
    teacher: bool
    labels: bool
    formula: str
    reference: str
    function: Callable[..., torch.Tensor]


LOSSES: Registry[Loss] = Registry("loss", f"{__package__}.losses")

Decorator = Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]


def recovery_loss(
    name: str, *, reads: Reads, formula: str, reference: str, teacher: bool = True, labels: bool = False
) -> Decorator:
    """Return a decorator that registers a loss."""

    def add(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        LOSSES.register(name)(Loss(name, reads, teacher, labels, formula, reference, function))
        return function

    return add
