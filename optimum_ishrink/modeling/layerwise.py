"""Running a model layer by layer, so that the statistics of only one layer are in memory at a time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from ..architectures.binding import Binding
from ..core.paging import is_paged, kept, new_states, present, release
from ..core.spool import States
from ..errors import RequestError
from .base import base_of, layers_of
from .layer_output import as_output, hidden_of, parts_of


class _Stop(Exception):
    """Ends a forward pass once the first layer's input is known."""


@contextmanager
def capture(module: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Record the input and the output of a module's next call."""
    seen: dict[str, torch.Tensor] = {}

    def record(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen["input"], seen["output"] = inputs[0], output

    handle = module.register_forward_hook(record)
    try:
        yield seen
    finally:
        handle.remove()


def check_apart(binding: Binding, what: str, advice: str) -> None:
    """Check that a model's layers can be run one by one.

    Args:
        binding: The model.
        what: What runs them, for the message.
        advice: What to do instead.

    Raises:
        RequestError: They cannot; the message says why.
    """
    if binding.joined is not None:
        raise RequestError(
            f"{what} runs the layers of a model one by one, and those of {binding.description.model_type} cannot be: "
            f"{binding.joined}; {advice}"
        )


def run_layer(layer: Any, hidden: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the output of a decoder layer.

    Args:
        layer: The layer.
        hidden: Its input, shape (batch, length, hidden).
        kwargs: Its other arguments, masks and position embeddings, from `enter_layers`.
    """
    output = layer(hidden, **kwargs)
    result = hidden_of(output)
    return result


def run_span(
    model: Any, layers: Sequence[Any], calls: Sequence[Mapping[int, Mapping[str, Any]]], states: States
) -> States:
    """Return the output of several layers, run one after another, each on all batches.

    Args:
        model: The model that they are of.
        layers: The layers.
        calls: The keyword arguments of each layer, by batch size.
        states: Input of the first, one tensor per batch, shape (windows, length, hidden).
    """
    for layer, kwargs in zip(layers, calls, strict=True):
        states = kept(model, (run_layer(layer, hidden, kwargs[len(hidden)]) for hidden in states))
    return states


def enter_layers(
    model: Any, binding: Binding, batches: Sequence[torch.Tensor], layers: int | None = None
) -> tuple[States, list[dict[int, dict[str, Any]]]]:
    """Return the input of the first layer for each batch, and the keyword arguments of each layer, by batch size.

    Masks and position embeddings depend only on the length, which is the same for all windows, so they are recorded
    once per batch size.

    Args:
        model: The model.
        binding: Its binding, or its base's.
        batches: Token ids, each of shape (windows, length), all of one length.
        layers: Number of layers of the model; that of the binding if None.

    Returns:
        Hidden states, one tensor per batch, shape (windows, length, hidden); and for each layer its keyword arguments,
        by the number of windows in a batch.

    Raises:
        RequestError: The layers cannot be run one by one.
    """
    check_apart(binding, "this method", "choose a criterion that runs the whole model, and compensation none")
    count = binding.sizes["layers"] if layers is None else layers
    calls: list[dict[int, dict[str, Any]]] = [{} for _ in range(count)]
    states = new_states(model)
    modules = layers_of(model, binding, count)
    first = present(modules[0])  # before the embedding, which would make room for it

    for batch in batches:
        known = len(batch) in calls[0]
        handles = []

        def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = (args[0] if args else kwargs["hidden_states"]).detach()
            states.append(hidden)
            if len(hidden) in calls[0]:
                raise _Stop

        handles.append(first.register_forward_pre_hook(enter, with_kwargs=True))
        if not known:
            for layer, module in enumerate(modules):

                def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = layer) -> None:
                    size = len(args[0] if args else kwargs["hidden_states"])
                    named = {**_by_name(module, args), **kwargs}
                    calls[layer][size] = {key: value for key, value in named.items() if key != "hidden_states"}

                handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
        try:
            with suppress(_Stop), _uncomputed(model, binding, count):
                base_of(model)(input_ids=batch.to(model.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    release(model)  # the embedding is not read again, and as large as several layers
    return states, calls


@contextmanager
def _uncomputed(model: Any, binding: Binding, count: int) -> Iterator[None]:
    """Let all layers but the first of a model on disk return their input: what they are called with needs no weights.

    Args:
        model: The model; one in memory runs its layers.
        binding: Its binding, or its base's.
        count: Number of its layers.
    """
    if not is_paged(model):
        yield
        return
    layers = layers_of(model, binding, count)
    parts = 0

    def note(_: Any, __: Any, output: Any) -> None:
        nonlocal parts
        parts = parts_of(output)

    def pass_through(*args: Any, **kwargs: Any) -> Any:
        return as_output(args[0] if args else kwargs["hidden_states"], parts)

    handle = layers[0].register_forward_hook(note)
    for layer in layers[1:]:
        layer.forward = pass_through
    try:
        yield
    finally:
        handle.remove()
        for layer in layers[1:]:
            del layer.forward


def _by_name(module: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return the positional arguments of a layer by their names: some classes pass masks so."""
    if len(args) < 2:
        return {}
    names = [*inspect.signature(type(module).forward).parameters][2:]  # after itself and the hidden states
    return dict(zip(names, args[1:], strict=False))


def first_row(value: Any, rows: int) -> Any:
    """Reduce batched tensors to their first window."""
    if isinstance(value, torch.Tensor) and value.dim() > 1 and len(value) == rows:
        return value[:1]
    return tuple(first_row(item, rows) for item in value) if isinstance(value, tuple) else value
