"""Which matrices of a checkpoint are quantised: the linear layers of its blocks, except routers."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ..architectures.axes import layer_module
from ..architectures.binding import Binding
from ..errors import RequestError, ShapeError
from .row_fallbacks import matrices, width_hint


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer of a model.

    Args:
        name: Name of its module.
        layer: Index of the layer that it belongs to; None outside the layers, such as the head.
        rows: Outputs.
        columns: Inputs: the weights of a row, which share scales.
        is_router: Whether it chooses experts: few weights with a large effect, which are not quantised.
    """

    name: str
    layer: int | None
    rows: int
    columns: int
    is_router: bool = False


def linear_layers(config: Any, binding: Binding) -> tuple[LinearLayer, ...]:
    """Return every linear layer that the model class builds from a config.

    The model is built on the meta device, so this takes no memory at any size. Weights that are not linear layers to
    PyTorch are left out, and no library here quantises them: fused experts, GPT-2's convolutions.

    Args:
        config: The model's config.
        binding: The model.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    places = {layer_module(binding, layer) + ".": layer for layer in range(binding.sizes["layers"])}
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        layer = next((index for prefix, index in places.items() if name.startswith(prefix)), None)
        bound = binding.in_memory.get(f"{name}.weight")
        is_router = bound is not None and bound.expert is None and bound.counts("experts")
        found.append(LinearLayer(name, layer, module.out_features, module.in_features, is_router))
    return tuple(found)


def layers_to_quantize(linears: Sequence[LinearLayer], layers_in_16_bits: Collection[int]) -> tuple[LinearLayer, ...]:
    """Return the linear layers that are quantised.

    Head and embedding stay in 16 bits: they are one matrix where the config ties them, transformers and vLLM leave
    them out by default, and quantising them costs the most quality.

    Args:
        linears: Every linear layer of the model.
        layers_in_16_bits: Layers that stay in 16 bits.

    Raises:
        RequestError: None is left.
    """
    inside = [linear for linear in linears if linear.layer is not None and not linear.is_router]
    chosen = tuple(linear for linear in inside if linear.layer not in layers_in_16_bits)
    if not inside:
        raise RequestError(
            "the layers of this model have no PyTorch linear layers, and only those can be quantised here; "
            "export GGUF instead, with --format gguf --quantization q8_0"
        )
    if not chosen:
        raise RequestError("every layer would stay in 16 bits, so nothing would be quantised; name fewer layers")
    return chosen


def check_columns(linears: Sequence[LinearLayer], group_size: int | None, binding: Binding) -> None:
    """Check that rows are multiples of the group size.

    Args:
        linears: The linear layers that are quantised.
        group_size: Weights in a group; None for whole rows, which fit any width.
        binding: The model.

    Raises:
        ShapeError: One is not; the message names the nearest widths that are.
    """
    if group_size is None:
        return
    known = {found.name: found for found in matrices(binding)}
    for linear in linears:
        if linear.columns % group_size:
            name = re.sub(r"(?<=\.)\d+(?=\.)", "*", f"{linear.name}.weight")
            counted_by = known[name].counted_by if name in known else None
            hint = width_hint(counted_by, linear.columns, group_size, "export int8, which takes any width")
            raise ShapeError(
                f"int4 in groups of {group_size} needs rows that are multiples of {group_size}, and those of {name} "
                f"have {linear.columns:,} weights; {hint}"
            )
