"""Numbers that are not finite: which model gives them, on which text, and in which of its modules they arise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..errors import NotFiniteError
from .device import dtype_name

NAN, INFINITE = "NaN", "infinite values"

ADVICE = "try dtype='float32'; where that is the dtype already, the weights are damaged or too large"
"""What to do where the module that is to blame is not looked for."""


def kind_of(*tensors: torch.Tensor) -> str | None:
    """Return what the first tensor with numbers that are not finite holds, `NaN` or `infinite values`, or None.

    Args:
        tensors: Of any dtype; integers are always finite.
    """
    for tensor in tensors:
        if not bool(tensor.isfinite().all()):
            return NAN if bool(tensor.isnan().any()) else INFINITE
    return None


def _floats(value: Any) -> Iterator[torch.Tensor]:
    """Yield the floating-point tensors of a module's output."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _floats(item)


@torch.no_grad()
def _first_module(model: Any, ids: torch.Tensor) -> tuple[str, str, bool] | None:
    """Return the first module whose output is not finite, what it holds, and whether its own weights do so too."""
    found: list[tuple[str, str, bool]] = []
    handles = []
    for name, module in model.named_modules():

        def look(module: Any, _: Any, output: Any, name: str = name) -> None:
            # A module's parts report before the module itself, so the first report is the innermost.
            if not found and (kind := kind_of(*_floats(output))) is not None:
                weights = kind_of(*module.parameters(recurse=False))
                found.append((name, weights or kind, weights is not None))

        handles.append(module.register_forward_hook(look))
    try:
        model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def not_finite(model: Any, ids: torch.Tensor, name: str, label: str) -> NotFiniteError | None:
    """Return the error of a model whose predictions are not finite, or None where they are.

    The model runs once more, to find the first module whose output is not finite.

    Args:
        model: The causal language model.
        ids: Token ids, shape (windows, length).
        name: The model's name in the message.
        label: Name of the text.
    """
    first = _first_module(model, ids)
    if first is None:
        return None
    module, kind, damaged = first
    where = f"first in {module}" if module else "first in its logits"
    if damaged:
        advice = f"whose weights hold {kind}: take an intact copy of the model"
    elif model.dtype != torch.float32:
        advice = f"whose values are too large for {dtype_name(model.dtype)}: try dtype='float32'"
    else:
        advice = "whose values are too large even for float32: this model cannot be used on this text"
    return NotFiniteError(f"{name} gives {kind} on {label}, {where}, {advice}")


def check_logits(logits: torch.Tensor, model: Any, ids: torch.Tensor, name: str, label: str) -> None:
    """Check that a model's predictions are finite.

    Args:
        logits: Its predictions.
        model: The causal language model.
        ids: What it read, shape (windows, length); it runs again on them only where the predictions are not finite.
        name: The model's name in the message.
        label: Name of the text.

    Raises:
        NotFiniteError: They are not; the message names the model, the text and the module.
    """
    kind = kind_of(logits)
    if kind is not None:
        raise where_not_finite(kind, model, ids, name, label)


def where_not_finite(kind: str, model: Any, ids: torch.Tensor, name: str, label: str) -> NotFiniteError:
    """Return the error of a model that gave predictions that are not finite, with the module where it can be found.

    Args:
        kind: What they hold, from `kind_of`.
        model: The causal language model.
        ids: What it read, shape (windows, length).
        name: The model's name in the message.
        label: Name of the text.
    """
    return not_finite(model, ids, name, label) or NotFiniteError(f"{name} gives {kind} on {label}; {ADVICE}")


@torch.no_grad()
def check_predictions(model: Any, ids: torch.Tensor, name: str, label: str) -> None:
    """Run a model once, and check that its predictions are finite.

    Args:
        model: The causal language model.
        ids: Token ids, shape (windows, length).
        name: The model's name in the message.
        label: Name of the text.

    Raises:
        NotFiniteError: They are not.
    """
    logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    check_logits(logits, model, ids, name, label)
