"""The exponential average of the weights over the steps, which is evaluated and saved in place of the last weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback


def decay_at(step: int, decay: float) -> float:
    """Return how much of the average a step retains.

    The first steps retain less: the initial weights, which the average starts from, would otherwise outweigh all that
    a short training finds.

    Args:
        step: Number of the step, from 1.
        decay: What later steps retain.
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage(TrainerCallback):  # type: ignore[misc]
    """Averages parameters over the steps: `average = d * average + (1 - d) * weights` after each.

    Args:
        decay: How much of the average a step retains, once the first steps are over.
        parameters: What is trained, by name.
    """

    def __init__(self, decay: float, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.decay = decay
        self.parameters = parameters
        self.values: dict[str, torch.Tensor] = {}
        """The average by name; empty before the training."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start from the initial weights, unless a checkpoint had an average."""
        if not self.values:
            self.values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add the weights that the step gave."""
        share = 1 - decay_at(state.global_step, self.decay)
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter.detach(), share)

    def resume(self, values: Mapping[str, torch.Tensor]) -> None:
        """Go on with the average of a checkpoint.

        Args:
            values: The average by name.
        """
        self.values = {name: values[name].to(parameter.device) for name, parameter in self.parameters.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the parameters have the average for a while; before the training they are what they are."""
        held = {name: parameter.detach().clone() for name, parameter in self.parameters.items() if name in self.values}
        self._set(self.values)
        try:
            yield
        finally:
            self._set(held)

    @torch.no_grad()
    def _set(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)
