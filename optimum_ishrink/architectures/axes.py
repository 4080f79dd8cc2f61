"""Which tensors hold the weights of a unit, which projections read it, and the names of a layer's modules."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .binding import Binding, BoundTensor
from .description import DIMENSIONS
from .expressions import Axis, parse_axes

_EXPERTS, _NEURONS = parse_axes("experts, ffn")


def holds_units(bound: BoundTensor, key: str) -> bool:
    """Whether a tensor holds weights of a dimension's units. For layers, all tensors of a layer do.

    Args:
        bound: The tensor.
        key: The dimension's config key. A KV group includes the query heads that read it, and their weights.
    """
    if bound.layer is None:
        return False
    size = DIMENSIONS[key]
    if size == "experts" and bound.expert is not None:
        return True
    return size == "layers" or bound.counts(size) or (size == "kv" and bound.counts("heads"))


def layers_with(binding: Binding, key: str) -> tuple[int, ...]:
    """Return the layers that have units of a dimension, ascending: of a hybrid, not all have attention or an MLP.

    Args:
        binding: The model.
        key: The dimension's config key.
    """
    holding = (bound.layer for bound in binding.tensors.values() if holds_units(bound, key))
    return tuple(sorted({layer for layer in holding if layer is not None}))


def input_axis(bound: BoundTensor) -> Axis:
    """Return the input axis of a projection's weight."""
    return bound.axes[0 if bound.transposed else 1]


def input_readers(binding: Binding, key: str) -> list[BoundTensor]:
    """Return the projections that read a unit (`o_proj`, `down_proj`): the units are only on their input axis.

    Args:
        binding: The model.
        key: The unit's config key.
    """
    size = "heads" if key == "num_key_value_heads" else DIMENSIONS[key]
    return [
        bound
        for bound in binding.tensors.values()
        if bound.layer is not None
        and len(bound.axes) == 2
        and bound.axes[0] != _EXPERTS
        and any(size in section.factors for section in input_axis(bound))
    ]


def layer_module(binding: Binding, layer: int, index: int | None = None) -> str:
    """Return the name of a layer's module, such as `model.layers.3`.

    Args:
        binding: The model.
        layer: Index of the layer.
        index: Use this index in the name instead, as in a model with fewer layers.
    """
    name = binding.layer_tensors(layer)[0].parameter
    parts = name.split(".")
    prefix = parts[: parts.index(str(layer))]
    return ".".join([*prefix, str(layer if index is None else index)])


def stacked_experts(binding: Binding, names: Collection[str]) -> dict[int, list[BoundTensor]]:
    """Return, by layer, the parameters that hold the matrices of all experts at once.

    Args:
        binding: The model.
        names: Names of the loaded model's parameters.
    """
    found: dict[int, list[BoundTensor]] = {}
    for name, bound in binding.in_memory.items():
        if len(bound.axes) == 3 and bound.axes[0] == _EXPERTS and name in names and bound.layer is not None:
            found.setdefault(bound.layer, []).append(bound)
    return found


def down_projection(stacked: Sequence[BoundTensor]) -> tuple[BoundTensor, bool]:
    """Return the projection down from a layer's neurons, and whether it stores (in, out).

    Args:
        stacked: The parameters that hold the matrices of all experts at once.
    """
    for place, transposed in ((2, False), (1, True)):
        if found := [bound for bound in stacked if bound.axes[place] == _NEURONS]:
            return found[0], transposed
    raise ValueError("no parameter of the experts goes down to the hidden size")
