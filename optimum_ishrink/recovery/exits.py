"""What early exits of a student compute: its lower layers' output through its own final norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import RequestError
from ..modeling.base import base_of
from .observe import Observed

Called = list[tuple[Any, Any]]


@contextmanager
def parts_called(model: Any, *, record: bool = True) -> Iterator[Called]:
    """Record the parts of a model's base that run, with what they return.

    Args:
        model: The causal language model.
        record: Whether to record anything.
    """
    called: Called = []

    def note(part: Any, _: Any, output: Any) -> None:
        called.append((part, output))

    handles = [part.register_forward_hook(note) for part in base_of(model).children() if record]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def exit_states(model: Any, seen: Observed, called: Called, exits: Sequence[int]) -> list[torch.Tensor]:
    """Return what would enter the head if a model ended after some of its layers.

    The final norm is the part of the base whose result is the base's own, so it needs no name.

    Args:
        model: The causal language model.
        seen: One forward pass of its base, with every layer's output.
        called: The parts that ran in it.
        exits: Numbers of layers.

    Returns:
        For each exit, shape (batch, length, hidden).

    Raises:
        RequestError: The class computes something after its last part.
    """
    if not exits:
        return []
    norm = next((part for part, output in called if output is seen.last), None)
    if norm is None:
        raise RequestError(
            f"the class of {model.config.model_type} changes hidden states after its last layer and norm, so early "
            "exits cannot be trained through them; leave out recovery_early_exit"
        )
    return [norm(seen.layers[count - 1]) for count in exits]
