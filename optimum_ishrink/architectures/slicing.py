"""Cutting tensors along the axes that their description names. Pure functions over tensors; no model, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Protocol

import numpy as np
import torch

from .binding import BoundTensor
from .expressions import Axis, Section, factor_length, parse_axes


class Memory(Protocol):
    """Reusable buffers: one overwrites the last that was taken for the same use."""

    def take(self, use: str, nbytes: int) -> torch.Tensor:
        """Return a buffer, uint8, shape (nbytes,)."""


Keep = Mapping[str, Sequence[int]]
"""Size name to the retained indices along it; sizes that are not named do not change."""


_SHARED = Section(("shared", "ffn"))
_ALL = parse_axes("ffn")[0][0]


def keep_in_expert(bound: BoundTensor, sizes: Mapping[str, int], keep: Keep) -> Keep:
    """Return `keep` with the neurons of one expert, or of the shared ones, if the tensor belongs to them.

    Args:
        bound: The tensor.
        sizes: The model's sizes.
        keep: What the layer retains; neurons are numbered through all experts.
    """
    if "ffn" not in keep or not sizes.get("experts"):
        return keep
    # A dense layer as wide as the experts has its neurons where others have those of their first expert.
    return {**keep, "ffn": _of_expert(keep["ffn"], bound.expert or 0, sizes["ffn"])}


def _as_one_mlp(
    bound: BoundTensor, sizes: Mapping[str, int], keep: Keep
) -> tuple[BoundTensor, Mapping[str, int], Keep]:
    """Return a tensor of shared experts as that of a single MLP that has all of their neurons; others as they are.

    Args:
        bound: The tensor.
        sizes: The model's sizes.
        keep: What the layer retains; the neurons of shared experts come after those of all others.
    """
    if not bound.counts("shared"):
        return bound, sizes, keep
    axes = tuple(tuple(_ALL if section == _SHARED else section for section in axis) for axis in bound.axes)
    before = sizes["experts"] * sizes["ffn"]
    if "ffn" in keep:
        keep = {**keep, "ffn": [neuron - before for neuron in keep["ffn"] if neuron >= before]}
    return replace(bound, axes=axes), {**sizes, "ffn": sizes["shared"] * sizes["ffn"]}, keep


def _of_expert(neurons: Sequence[int], expert: int, width: int) -> list[int]:
    return [neuron - expert * width for neuron in neurons if neuron // width == expert]


def is_dropped(bound: BoundTensor, keep: Keep) -> bool:
    """Return whether a tensor belongs to one expert alone, and that expert goes.

    Args:
        bound: The tensor.
        keep: What the layer retains.
    """
    return bound.expert is not None and "experts" in keep and bound.expert not in keep["experts"]


def new_name(bound: BoundTensor, layer: int, keep: Keep) -> str:
    """Return the name of a retained tensor of a layer in the cut model.

    Args:
        bound: The tensor.
        layer: The new index of its layer.
        keep: What the layer retains: retained experts are renumbered.
    """
    if bound.expert is None or "experts" not in keep:
        return bound.in_layer(layer)
    return bound.in_layer(layer, list(keep["experts"]).index(bound.expert))


def axis_index(axis: Axis, sizes: Mapping[str, int], keep: Keep) -> torch.Tensor | None:
    """Return the retained positions along an axis, or None if all are.

    Args:
        axis: What the axis counts.
        sizes: The model's sizes.
        keep: What is retained along the sizes that change.

    Returns:
        Ascending int64 positions, shape (retained,).
    """
    if not any(factor in keep for section in axis for factor in section.factors):
        return None
    start = 0
    parts = []
    for section in axis:
        lengths = [factor_length(factor, sizes) for factor in section.factors]
        index = torch.arange(prod(lengths)).view(lengths)
        for dim, factor in enumerate(section.factors):
            if factor in keep:
                index = index.index_select(dim, torch.as_tensor(keep[factor], dtype=torch.int64))
        parts.append(index.flatten() + start)
        start += prod(lengths)
    return torch.cat(parts)


_EXPERTS = parse_axes("experts")[0]


_SAME_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def slice_tensor(
    tensor: torch.Tensor, bound: BoundTensor, sizes: Mapping[str, int], keep: Keep, scratch: Memory | None = None
) -> torch.Tensor:
    """Return the retained part of a tensor.

    Args:
        tensor: The whole tensor.
        bound: Its description.
        sizes: The model's sizes.
        keep: What is retained along the sizes that change.
        scratch: Buffer for the result of a tensor on the CPU; the next tensor that is cut with it overwrites it.
    """
    if _stacks_experts(bound, keep):
        parts = [
            slice_tensor(tensor[expert], _one_expert(bound, expert), sizes, keep)
            for expert in keep.get("experts", range(sizes["experts"]))
        ]
        return torch.stack(parts)
    bound, sizes, keep = _as_one_mlp(bound, sizes, keep)
    keep = keep_in_expert(bound, sizes, keep)
    for dim, axis in enumerate(bound.axes):
        index = axis_index(axis, sizes, keep)
        if index is None:
            continue
        if scratch is None:
            tensor = tensor.index_select(dim, index.to(tensor.device))
        else:
            tensor = take(tensor, dim, index, scratch)
    return tensor


def take(tensor: torch.Tensor, dim: int, index: torch.Tensor, scratch: Memory) -> torch.Tensor:
    """`index_select` through numpy: three times as fast along the last axis, and into a reused buffer.

    Args:
        tensor: A tensor on the CPU.
        dim: The axis.
        index: The retained positions along it, int64.
        scratch: Buffer for the result; the next tensor that is taken along this axis overwrites it.
    """
    shape = [len(index) if i == dim else length for i, length in enumerate(tensor.shape)]
    out = scratch.take(f"axis {dim}", prod(shape) * tensor.element_size()).view(tensor.dtype).view(shape)
    integers = _SAME_WIDTH[tensor.element_size()]  # numpy has no bfloat16, and a copy needs none
    # Any mode but the default writes to `out` without a temporary buffer; the indices are in range by construction.
    np.take(tensor.view(integers).numpy(), index.numpy(), axis=dim, out=out.view(integers).numpy(), mode="clip")
    return out


def zero_removed(tensor: torch.Tensor, bound: BoundTensor, sizes: Mapping[str, int], keep: Keep) -> torch.Tensor:
    """Return a copy of a tensor with everything that `slice_tensor` would drop set to zero.

    Args:
        tensor: The whole tensor.
        bound: Its description.
        sizes: The model's sizes.
        keep: What is retained along the sizes that change.
    """
    if _stacks_experts(bound, keep):
        parts = [
            zero_removed(tensor[expert], _one_expert(bound, expert), sizes, keep) for expert in range(sizes["experts"])
        ]
        return torch.stack(parts)
    tensor = tensor.clone()
    if is_dropped(bound, keep):
        return tensor.zero_()
    bound, sizes, keep = _as_one_mlp(bound, sizes, keep)
    keep = keep_in_expert(bound, sizes, keep)
    for dim, axis in enumerate(bound.axes):
        index = axis_index(axis, sizes, keep)
        if index is not None:
            removed = torch.ones(tensor.shape[dim], dtype=torch.bool)
            removed[index] = False
            tensor.index_fill_(dim, removed.nonzero().flatten().to(tensor.device), 0)
    return tensor


def _stacks_experts(bound: BoundTensor, keep: Keep) -> bool:
    """Whether a tensor holds all experts along its first axis, with neurons that differ from expert to expert."""
    return "ffn" in keep and bound.counts("ffn") and bound.axes[0] == _EXPERTS


def _one_expert(bound: BoundTensor, expert: int) -> BoundTensor:
    return replace(bound, axes=bound.axes[1:], expert=expert)


def sum_per_unit(values: torch.Tensor, bound: BoundTensor, sizes: Mapping[str, int], unit: str) -> torch.Tensor:
    """Sum a tensor per unit.

    Args:
        values: One value per weight (or per channel), in the shape that the tensor's axes describe.
        bound: The tensor's description.
        sizes: The model's sizes.
        unit: Size name of the unit. For `"kv"`, a query head counts for its group: head `i` for group
            `i // (heads // kv)`, the order in which transformers repeats keys and values.

    Returns:
        The sums in float32, shape (units,). With experts, the neurons of one expert follow those of another, and
        those of shared ones come last.
    """
    if unit == "experts" and bound.expert is not None:
        sums = torch.zeros(sizes[unit], dtype=torch.float32, device=values.device)
        sums[bound.expert] = values.sum(dtype=torch.float32)
        return sums
    experts = (sizes.get("experts") or 1) if unit == "ffn" else 1
    shared = (sizes.get("shared") or 0) if unit == "ffn" else 0
    total = torch.zeros(experts + shared, sizes[unit], dtype=torch.float32, device=values.device)
    if shared and bound.counts("shared"):
        one, wide, _ = _as_one_mlp(bound, sizes, {})
        total[experts:] = _sum_axes(values, one.axes, wide, unit).view(shared, -1)
    elif bound.axes and experts > 1 and bound.axes[0] == _EXPERTS:
        for expert in range(experts):
            total[expert] = _sum_axes(values[expert], bound.axes[1:], sizes, unit)
    else:
        total[(bound.expert or 0) if experts > 1 else 0] = _sum_axes(values, bound.axes, sizes, unit)
    return total.flatten()


def _sum_axes(values: torch.Tensor, axes: tuple[Axis, ...], sizes: Mapping[str, int], unit: str) -> torch.Tensor:
    total = torch.zeros(sizes[unit], dtype=torch.float32, device=values.device)
    for dim, axis in enumerate(axes):
        start = 0
        for section in axis:
            lengths = [factor_length(factor, sizes) for factor in section.factors]
            for position, factor in enumerate(section.factors):
                if factor == unit or (unit == "kv" and factor == "heads"):
                    part = values.narrow(dim, start, prod(lengths)).movedim(dim, 0).to(torch.float32)
                    part = part.reshape(prod(lengths[:position]), lengths[position], -1).sum(dim=(0, 2))
                    total += part.view(sizes[unit], -1).sum(dim=1)
            start += prod(lengths)
    return total


def unit_positions(axis: Axis, sizes: Mapping[str, int], unit: str) -> torch.Tensor:
    """Return the positions along an axis that belong to each unit, ascending.

    Args:
        axis: What the axis counts; every position belongs to one unit.
        sizes: The model's sizes.
        unit: Size name of the unit; for `"kv"`, query heads count as in `sum_per_unit`.

    Returns:
        int64, shape (units, positions of a unit).
    """
    owners = []
    for section in axis:
        lengths = [factor_length(factor, sizes) for factor in section.factors]
        (dim,) = (i for i, name in enumerate(section.factors) if name == unit or (unit, name) == ("kv", "heads"))
        owner = torch.arange(lengths[dim]) // (lengths[dim] // sizes[unit])
        shape = [length if i == dim else 1 for i, length in enumerate(lengths)]
        owners.append(owner.view(shape).expand(lengths).flatten())
    return torch.cat(owners).sort(stable=True).indices.view(sizes[unit], -1)
