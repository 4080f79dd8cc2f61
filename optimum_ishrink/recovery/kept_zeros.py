"""Zeros that stay zero while the other weights of their matrices are trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from ..errors import RequestError
from .options import RecoveryOptions


def check_zeros(options: RecoveryOptions) -> None:
    """Check that a recovery can keep the zeros of a sparse model.

    Args:
        options: The recovery's options.

    Raises:
        RequestError: It would fill them.
    """
    if options.uses_lora:
        raise RequestError(
            "recovery_train='lora' adds a matrix without zeros to the weights, so that the sparse model would lose "
            "its pattern; train with recovery_train='full', or parts such as norms+last:4"
        )
    if options.recovery_for is not None:
        raise RequestError(
            f"recovery_for={options.recovery_for!r} rounds weights, zeros too, so that the sparse model would lose "
            "its pattern; leave it out"
        )
    if options.compensates:
        raise RequestError(
            "recovery_compensation='ridge' solves for all weights of a projection, so that the sparse model would "
            "lose its pattern; leave it out"
        )


class KeepZeros(TrainerCallback):  # type: ignore[misc]
    """Keeps the zeros of parameters while their other values are trained.

    Gradients are zero there, too, so that neither their norm nor the optimiser's moments count what cannot change.

    Args:
        parameters: The parameters, before the first step.
    """

    def __init__(self, parameters: Collection[torch.nn.Parameter]) -> None:
        self._masks: Mapping[torch.nn.Parameter, torch.Tensor] = {
            parameter: parameter.detach() != 0 for parameter in parameters
        }
        for parameter, mask in self._masks.items():
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)  # type: ignore[no-untyped-call]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set them to zero again."""
        with torch.no_grad():
            for parameter, mask in self._masks.items():
                parameter.mul_(mask)
