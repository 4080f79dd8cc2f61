"""Running what comes after a model's layers on hidden states that were computed before, and logits of a whole text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..core.device import to_device
from ..core.paging import binding_of, release
from .base import layers_of
from .layer_output import as_output, parts_of
from .layerwise import enter_layers, run_span


@contextmanager
def given(model: Any, layers: Sequence[Any], hidden: torch.Tensor, parts: int) -> Iterator[None]:
    """Let the layers of a model run nothing, and the last of them return given hidden states; embed nothing either.

    Args:
        model: The model.
        layers: Its layers.
        hidden: The hidden states, shape (windows, length, hidden).
        parts: What `parts_of` gives for a layer's own output.
    """

    def give(*_: Any, **__: Any) -> Any:
        return as_output(hidden.clone(), parts)  # a class may change what it gets in place

    embedding = model.get_input_embeddings()
    for layer in layers:
        layer.forward = give
    embedding.forward = lambda *_, **__: hidden.detach().clone()
    try:
        yield
    finally:
        for module in (*layers, embedding):
            del module.forward


@torch.no_grad()
def logits_by_window(model: Any, windows: torch.Tensor) -> Callable[[slice], torch.Tensor]:
    """Return a function that gives the logits of some windows, shape (windows, length, vocabulary).

    A model in memory runs when windows are asked for. One that is on disk runs here, layer by layer over all windows,
    and its head when windows are asked for.

    Args:
        model: The model.
        windows: Token ids, shape (windows, length).
    """

    def run(part: slice) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=to_device(windows[part], model.device), use_cache=False).logits
        return logits

    binding = binding_of(model)
    if binding is None or not len(windows):
        return run
    ids = [window[None].to(model.device) for window in windows]
    layers = layers_of(model, binding)
    states, calls = enter_layers(model, binding, ids)
    parts = parts_of(layers[0](states[0], **calls[0][1]))
    states = run_span(model, layers, calls, states)
    release(model)

    def run_head(part: slice) -> torch.Tensor:
        entering = torch.cat([states[index] for index in range(len(windows))[part]])
        with given(model, layers, entering, parts):
            return run(part)

    return run_head
