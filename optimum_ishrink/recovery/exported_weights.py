"""Training for an export: the forward pass reads the weights that the file will hold, the optimiser moves exact ones.

Rounding has no useful derivative. The gradient is taken at the rounded weights and applied to the exact ones, as if
rounding were the identity (straight-through estimator: Bengio et al., arXiv:1308.3432, section 4; for language
models: LLM-QAT, arXiv:2305.17888). So nothing has to change in the forward pass: parameters hold rounded values while
a batch runs, and the exact ones while the optimiser takes its step. Weights are rounded once a step, not once a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from transformers import TrainerCallback

Values = Callable[[torch.Tensor], torch.Tensor]
"""Takes a parameter in the checkpoint's dtype and layout; returns what the export holds of it, float32."""

_ADAPTER = "default"


@dataclass(frozen=True)
class ExportedValues:
    """What an export holds of a checkpoint.

    Args:
        name: Name of the quantisation.
        values: The quantised parameters, by their names in the loaded model.
        dtypes: The dtypes that the checkpoint stores parameters in, by the same names.
        types: Types of the matrices of a mixed file, by their names in it; None where one type was named.
    """

    name: str
    values: Mapping[str, Values]
    dtypes: Mapping[str, torch.dtype]
    types: Mapping[str, str] | None = None


class ExportedWeights:
    """A model's parameters, rounded as an export will round them once they are stored.

    They are rounded to the checkpoint's dtype first, as `write_trained` does. An adapter is merged into its weight,
    and the sum is rounded; what it adds in the forward pass is zero then, and carries the gradient to its two factors.

    Args:
        model: The causal language model, prepared for training.
        own: Its parameters by the names that they had before an adapter wrapped them.
        exported: What the export holds.
    """

    def __init__(self, model: Any, own: Mapping[str, torch.nn.Parameter], exported: ExportedValues) -> None:
        self._exported = exported
        self._adapted = {
            f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, LoraLayer)
        }
        self._parameters = {
            name: parameter
            for name, parameter in own.items()
            if parameter.requires_grad or name in exported.values or name in self._adapted
        }
        self._exact: dict[str, torch.Tensor] = {}
        self._unchanging: dict[str, torch.Tensor] = {}
        for layer in self._adapted.values():
            # The gradient of the factors is that of the merged weight; the input's is that of the rounded one alone.
            layer.lora_A[_ADAPTER].register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
            layer.lora_B[_ADAPTER].register_forward_hook(lambda _, inputs, added: added - added.detach())
        self.put()

    @torch.no_grad()
    def put(self, *, rounded: bool = True) -> None:
        """Put rounded values in the parameters, for the forward pass.

        Args:
            rounded: Whether they are quantised; else they are as the checkpoint stores them.
        """
        assert not self._exact, "the parameters hold rounded values already"
        for name, parameter in self._parameters.items():
            self._exact[name] = parameter.data
            parameter.data = self._rounded(name, rounded=rounded).to(parameter.dtype)

    def take(self) -> None:
        """Put the exact values back, for what changes or stores them."""
        for name, exact in self._exact.items():
            self._parameters[name].data = exact
        self._exact = {}

    @contextmanager
    def exact(self, *, changed: bool = True) -> Iterator[None]:
        """Hold the exact values for a while.

        Args:
            changed: Whether they are changed meanwhile, so that all have to be rounded anew.
        """
        rounded = {name: self._parameters[name].data for name in self._exact}
        self.take()
        try:
            yield
        finally:
            if changed:
                self._unchanging = {}
                self.put()
            else:
                for name, values in rounded.items():
                    parameter = self._parameters[name]
                    self._exact[name], parameter.data = parameter.data, values

    @contextmanager
    def stored(self) -> Iterator[None]:
        """Hold for a while what the checkpoint stores, before it is quantised."""
        self.take()
        self.put(rounded=False)
        try:
            yield
        finally:
            self.take()
            self.put()

    @torch.no_grad()
    def merged(self) -> dict[str, torch.Tensor]:
        """Return the weights that an adapter is merged into, as the checkpoint stores them, by name, on the CPU."""
        return {name: self._stored(name).cpu() for name in self._adapted}

    def _rounded(self, name: str, *, rounded: bool) -> torch.Tensor:
        values = self._exported.values.get(name) if rounded else None
        if values is None:
            return self._stored(name)
        changes = self._parameters[name].requires_grad or name in self._adapted
        if changes:
            return values(self._stored(name))
        if name not in self._unchanging:
            self._unchanging[name] = values(self._stored(name)).to(self._parameters[name].dtype)
        return self._unchanging[name]

    def _stored(self, name: str) -> torch.Tensor:
        exact = self._exact.get(name, self._parameters[name].data)
        if name in self._adapted:
            exact = exact.float() + self._adapted[name].get_delta_weight(_ADAPTER)
        return exact.to(self._exported.dtypes[name])


class StepOnExact(TrainerCallback):  # type: ignore[misc]
    """Lets the optimiser change the exact weights, and rounds them again after each of its steps.

    Args:
        weights: The weights.
    """

    def __init__(self, weights: ExportedWeights) -> None:
        self._weights = weights

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the exact values into the parameters; their gradients are there."""
        self._weights.take()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Round what the step changed."""
        self._weights.put()
