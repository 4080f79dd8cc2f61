"""Setting parts of a loaded model to zero for a while: nothing is copied, and everything is put back.

A unit is silent when what it passes to the next projection is zero: the heads of a KV group at the input of
`o_proj`, a neuron at the input of `down_proj`. The same logits come from the model with those weights at zero. Where
the experts of a layer are one tensor there is no such input, and their columns are set to zero in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from ..architectures.axes import input_axis, input_readers, layer_module, stacked_experts
from ..architectures.binding import Binding, BoundTensor
from ..architectures.description import GROUPS, NEURONS
from ..architectures.expressions import parse_axes
from ..architectures.slicing import axis_index, keep_in_expert
from ..modeling.layer_output import as_output
from .zeroing import Removal

Mask = Callable[[], AbstractContextManager[None]]
"""Opens a context in which something is at zero."""

_HIDDEN, _NEURONS = parse_axes("hidden, ffn")


@contextmanager
def together(masks: Sequence[Mask]) -> Iterator[None]:
    """Enter several contexts at once; all are left, whatever happens inside.

    Args:
        masks: The contexts.
    """
    with ExitStack() as stack:
        for mask in masks:
            stack.enter_context(mask())
        yield


@contextmanager
def zero_inputs(module: Any, positions: torch.Tensor | None) -> Iterator[None]:
    """Set channels of what enters a module to zero.

    Args:
        module: The projection.
        positions: Channels of its input, int64; None for all.
    """

    def fill(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = inputs[0]
        zeroed = torch.zeros_like(hidden) if positions is None else hidden.index_fill(-1, positions, 0)
        return (zeroed, *inputs[1:])

    handle = module.register_forward_pre_hook(fill)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def zero_columns(parameter: torch.Tensor, dim: int, positions: Sequence[torch.Tensor]) -> Iterator[None]:
    """Set slices of a tensor that stacks experts to zero, and put them back; only these slices are copied meanwhile.

    Args:
        parameter: Shape (experts, ..., ...).
        dim: The axis of one expert's matrix that is sliced.
        positions: For each expert, where on that axis, int64.
    """
    weights = parameter.detach()
    saved: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    try:
        for weight, index in zip(weights, positions, strict=True):
            index = index.to(weight.device)
            saved.append((weight, index, weight.index_select(dim, index)))
            weight.index_fill_(dim, index, 0)
        yield
    finally:
        for weight, index, values in saved:
            weight.index_copy_(dim, index, values)


@contextmanager
def skip_layer(module: Any) -> Iterator[None]:
    """Let a layer return its input. It still runs, so that a cache of keys and values stays consistent.

    Args:
        module: The layer.
    """

    def undo(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return type(output)((hidden, *output[1:])) if isinstance(output, (tuple, list)) else hidden

    handle = module.register_forward_hook(undo, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def mask_removal(model: Any, binding: Binding, removal: Removal) -> list[Mask]:
    """Return the contexts that set a removal to zero.

    Args:
        model: The loaded model.
        binding: Its binding.
        removal: What is removed.
    """
    group = binding.sizes["heads"] // binding.sizes["kv"]
    readers = {key: input_readers(binding, key) for key in (GROUPS, NEURONS)}
    stacked = _with_neurons(model, binding)
    masks: list[Mask] = [
        partial(skip_layer, model.get_submodule(layer_module(binding, layer))) for layer in removal.layers
    ]
    for layer, groups in enumerate(removal.groups):
        heads = [head for one in groups for head in range(one * group, (one + 1) * group)]
        masks += _mask_inputs(model, binding, readers[GROUPS], layer, {"heads": heads}) if heads else []
    for layer, neurons in enumerate(removal.neurons):
        if neurons and layer in stacked:
            masks += [_mask_experts(model, binding, bound, neurons) for bound in stacked[layer]]
            masks += _mask_shared(model, binding, readers[NEURONS], layer, neurons)
        elif neurons:
            masks += _mask_inputs(model, binding, readers[NEURONS], layer, {"ffn": neurons})
    return masks


def mask_attention(model: Any, binding: Binding, layer: int) -> list[Mask]:
    """Return the contexts in which a layer's attention, or what stands in its place, projects nothing but its bias.

    Args:
        model: The loaded model.
        binding: Its binding.
        layer: Index of the layer.
    """
    tensors = binding.layer_tensors(layer)
    readers = [bound for bound in input_readers(binding, GROUPS) if bound.layer == layer]
    mixers = readers or [bound for bound in tensors if _projects_back(bound) and not _projects_down(bound)]
    return [partial(zero_inputs, model.get_submodule(bound.module), None) for bound in mixers]


def mask_mlp(model: Any, binding: Binding, layer: int) -> list[Mask]:
    """Return the contexts in which a layer's MLP projects nothing down but its bias: experts, routed and shared.

    Args:
        model: The loaded model.
        binding: Its binding.
        layer: Index of the layer.
    """
    width = binding.sizes["ffn"]
    experts = [
        _mask_experts(model, binding, bound, range(width * binding.sizes["experts"]))
        for bound in _with_neurons(model, binding).get(layer, ())
    ]
    dense = [
        partial(zero_inputs, model.get_submodule(bound.module), None)
        for bound in binding.layer_tensors(layer)
        if _projects_down(bound)
    ]
    return [*dense, *experts]


def _projects_back(bound: BoundTensor) -> bool:
    """Whether a tensor is the weight of a module that goes from a width of the layer's own to the hidden size."""
    if len(bound.axes) != 2 or bound.expert is not None:
        return False
    inner, outer = input_axis(bound), bound.axes[1 if bound.transposed else 0]
    factors = {factor for section in inner for factor in section.factors}
    return outer == _HIDDEN and not factors & {"hidden", "experts"}


def _projects_down(bound: BoundTensor) -> bool:
    """Whether that width is one of an MLP."""
    return _projects_back(bound) and any(
        factor.endswith("ffn") for section in input_axis(bound) for factor in section.factors
    )


def _mask_inputs(
    model: Any, binding: Binding, readers: Sequence[BoundTensor], layer: int, removed: Mapping[str, Sequence[int]]
) -> list[Mask]:
    masks: list[Mask] = []
    for bound in readers:
        if bound.layer == layer and bound.expert is None:
            module = model.get_submodule(bound.module)
            positions = axis_index(input_axis(bound), binding.sizes, keep_in_expert(bound, binding.sizes, removed))
            assert positions is not None
            masks.append(partial(zero_inputs, module, positions.to(module.weight.device)))
    return masks


def _mask_shared(
    model: Any, binding: Binding, readers: Sequence[BoundTensor], layer: int, neurons: Sequence[int]
) -> list[Mask]:
    """Return the contexts that leave neurons of shared experts unread; they come after those of all others."""
    before = binding.sizes["experts"] * binding.sizes["ffn"]
    shared = torch.tensor([neuron - before for neuron in neurons if neuron >= before], dtype=torch.int64)
    modules = [
        model.get_submodule(bound.module)
        for bound in readers
        if bound.layer == layer and bound.counts("shared") and len(shared)
    ]
    return [partial(zero_inputs, module, shared.to(module.weight.device)) for module in modules]


def _with_neurons(model: Any, binding: Binding) -> dict[int, list[BoundTensor]]:
    """Return, by layer, the parameters that hold all experts at once and have neurons alone along one axis."""
    stacked = stacked_experts(binding, dict(model.named_parameters()))
    return {layer: [bound for bound in found if _NEURONS in bound.axes] for layer, found in stacked.items()}


def _mask_experts(model: Any, binding: Binding, bound: BoundTensor, neurons: Sequence[int]) -> Mask:
    width = binding.sizes["ffn"]
    rows: list[list[int]] = [[] for _ in range(binding.sizes["experts"])]
    for neuron in neurons:
        if neuron // width < len(rows):
            rows[neuron // width].append(neuron % width)
    positions = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return partial(zero_columns, model.get_parameter(bound.name), bound.axes.index(_NEURONS) - 1, positions)


@contextmanager
def continue_from(layers: Sequence[Any], start: int, hidden: torch.Tensor, parts: int) -> Iterator[None]:
    """Run only the layers from one on, and whatever the model applies after them, from hidden states that are known.

    Embedding, masks and head are the model's own, so that this is right for whatever an architecture does there.

    Args:
        layers: All layers of the model.
        start: The first layer that runs; the number of layers when none does.
        hidden: What enters it, shape (batch, length, hidden).
        parts: What `parts_of` gives for a layer's own output.
    """
    result = as_output(hidden, parts)
    before = [(layer, layer.__dict__.get("forward")) for layer in layers[:start]]
    try:
        for layer, _ in before:
            layer.forward = lambda *_, **__: result
        yield
    finally:
        for layer, own in before:
            if own is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = own
