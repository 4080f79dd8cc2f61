"""A model's first layers with its own final norm and head, as `assistant_early_exit` of transformers runs them.

transformers lowers `num_hidden_layers` in the config of a built model while it drafts. Most classes run as many layers
as the config says. Others run all that they have, so that such a draft would be the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..architectures.binding import Binding
from ..architectures.model_class import meta_model
from ..errors import RequestError, one_line
from .base import layers_of


@contextmanager
def first_layers(model: Any, count: int) -> Iterator[None]:
    """Make a model run its first layers alone.

    Args:
        model: A causal language model.
        count: How many layers.
    """
    config = getattr(model, model.base_model_prefix).config
    whole = config.num_hidden_layers
    config.num_hidden_layers = count
    try:
        yield
    finally:
        config.num_hidden_layers = whole


def check_exits(exits: Sequence[int], layers: int) -> None:
    """Check that early exits are within a model.

    Args:
        exits: Numbers of layers that run before an exit.
        layers: Layers of the model.

    Raises:
        RequestError: One is not, or is named twice.
    """
    outside = [each for each in exits if not 1 <= each < layers]
    if outside:
        raise RequestError(
            f"an early exit after {outside[0]} layers is not within this model of {layers}; "
            f"name numbers from 1 to {layers - 1}"
        )
    if len(set(exits)) < len(exits):
        raise RequestError(f"an early exit is named twice in {','.join(map(str, exits))}; name each once")


def check_exits_run(config: Any, binding: Binding) -> None:
    """Check that a model's class can run its first layers alone; the model is built on the meta device.

    Args:
        config: The model's config.
        binding: Its binding.

    Raises:
        RequestError: It cannot; the message says why.
    """
    name = binding.description.model_type
    # In 16 bits: on the meta device fused experts take no others.
    model = meta_model(config).to(torch.bfloat16).eval()
    entered: list[int] = []
    for layer, module in enumerate(layers_of(model, binding)):

        def note(*_: Any, layer: int = layer) -> None:
            entered.append(layer)

        module.register_forward_pre_hook(note)
    reason = ""
    try:
        with first_layers(model, 1), torch.inference_mode():
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device="meta"), use_cache=True)
    except Exception as error:  # a class raises whatever its first wrong size raises
        reason = f"{type(error).__name__}: {one_line(error, 120)}"
    remedy = "make a draft of its own with `ishrink draft`"
    if len(entered) > 1:
        raise RequestError(
            f"the class of {name} runs all of its layers whatever num_hidden_layers says, so transformers has no "
            f"early exit for it; {remedy}"
        )
    if reason:
        raise RequestError(
            f"the class of {name} cannot run its first layers alone ({reason}), as an early exit in transformers "
            f"does; {remedy}"
        )
