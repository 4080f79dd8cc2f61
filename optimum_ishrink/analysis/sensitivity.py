"""What each layer is worth: the divergence with its attention, its MLP or the whole of it out.

Nothing changes before the layer in question, so its input is stored and only the layers from it on are run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from ..architectures.binding import Binding
from ..modeling.base import layers_of
from ..modeling.layer_output import parts_of
from ..modeling.layerwise import enter_layers, run_span
from ..report.analysis import LayerSensitivity
from ..report.measurement import Measurement
from .divergence import Advance, Reference, measure_masked
from .masking import Mask, continue_from, mask_attention, mask_mlp


@torch.no_grad()
def measure_layers(
    reference: Reference,
    binding: Binding,
    wanted: Sequence[int],
    label: str,
    *,
    advance: Advance = lambda steps: None,
) -> Iterator[LayerSensitivity]:
    """Yield the sensitivity of each layer in turn.

    In memory at once: the hidden states in front of one layer, for all windows.

    Args:
        reference: The whole model's predictions.
        binding: The model's binding.
        wanted: Indices of the layers to measure, ascending.
        label: Name of the text.
        advance: Called with 1 after each window, three times for each layer.

    Raises:
        DataError: The logits are not finite.
    """
    if not wanted:
        return
    model = reference.model
    layers = layers_of(model, binding)
    states, how = enter_layers(model, binding, [reference.ids(i) for i in range(len(reference.windows))])
    first = layers[0](states[0], **how[0][1])
    parts = parts_of(first)

    def measure(start: int, masks: Sequence[Mask]) -> Measurement:
        (found,) = measure_masked(
            reference,
            lambda index: [partial(continue_from, layers, start, states[index], parts), *masks],
            label,
            metrics=("kl_divergence",),
            advance=advance,
        )
        return found

    for layer in range(wanted[-1] + 1):
        if layer in wanted:
            yield LayerSensitivity(
                layer,
                attention=measure(layer, mask_attention(model, binding, layer)),
                mlp=measure(layer, mask_mlp(model, binding, layer)),
                block=measure(layer + 1, ()),
            )
        states = run_span(model, layers[layer : layer + 1], how[layer : layer + 1], states)
