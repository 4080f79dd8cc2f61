"""What a model's base computes on the way: its output, its layers' hidden states, its attention's values."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import RequestError
from ..modeling.base import base_of


@dataclass(frozen=True)
class Observed:
    """One forward pass of a model's base.

    Args:
        last: What enters the head, shape (batch, length, hidden).
        output_class: Class of the base's output.
        layers: Each layer's output, shape (batch, length, hidden); the last one after the final norm. Empty unless
            requested.
        values: Each layer's values, shape (batch, KV heads, length, head size), or None where it has no attention.
            Empty unless requested.
    """

    last: torch.Tensor
    output_class: type
    layers: tuple[torch.Tensor, ...] = ()
    values: tuple[torch.Tensor | None, ...] = ()


_RECORDING = "ishrink_recording_"

_SINKS: list[dict[int, torch.Tensor]] = []
"""Where values go that are recorded now, by layer, the innermost last: an attention function is registered by name for
all models, so it cannot hold the place itself."""


def _recorder(kind: str) -> str:
    """Return the name of an attention that records its values and computes like another."""
    name = _RECORDING + kind
    if name in ALL_ATTENTION_FUNCTIONS.valid_keys():
        return name

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **how: Any
    ) -> Any:
        if kind == "eager":  # every model brings its own
            function = sys.modules[type(module).__module__].eager_attention_forward
        else:
            function = ALL_ATTENTION_FUNCTIONS[kind]
        if _SINKS:
            _SINKS[-1][getattr(module, "layer_idx", len(_SINKS[-1]))] = value
        return function(module, query, key, value, *rest, **how)

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[kind])
    return name


@contextmanager
def _recorded(model: Any) -> Iterator[dict[int, torch.Tensor]]:
    """Record the values of every attention that runs, by layer."""
    config = model.get_decoder().config
    kind = config._attn_implementation
    config._attn_implementation = _recorder(kind)
    _SINKS.append({})
    try:
        yield _SINKS[-1]
    finally:
        _SINKS.pop()
        config._attn_implementation = kind


def observe(model: Any, input_ids: torch.Tensor, *, layers: bool = False, values: bool = False) -> Observed:
    """Run a causal language model's base, without its head.

    Args:
        model: The causal language model.
        input_ids: Token ids, shape (batch, length).
        layers: Keep each layer's output.
        values: Keep each attention's values.

    Raises:
        RequestError: The model's class does not show its values.
    """
    how = {"input_ids": input_ids, "use_cache": False, "output_hidden_states": layers}
    if values:
        with _recorded(model) as recorded:
            output = base_of(model)(**how)
        if not recorded:
            raise RequestError(
                f"a loss of attention reads the values of every layer, and the class of {model.config.model_type} "
                "computes attention in a function of its own; choose another loss"
            )
    else:
        recorded = {}
        output = base_of(model)(**how)
    states = tuple(output.hidden_states[1:]) if layers else ()
    by_layer = tuple(recorded.get(layer) for layer in range(model.config.num_hidden_layers)) if values else ()
    return Observed(output.last_hidden_state, type(output), states, by_layer)
