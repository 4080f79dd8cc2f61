"""Cutting tensors along the axes that their description names. Pure functions over tensors; no model, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..architectures.slicing import Keep, slice_tensor, zero_removed
from ..architectures.spec import Binding, BoundTensor
from ..report.plan import Plan


def kept_units(binding: Binding, plan: Plan, position: int) -> Keep:
    """Return what stays in one layer, by size name.

    Args:
        binding: The model.
        plan: The plan.
        position: Position of the layer in `plan.layers`.
    """
    keep: dict[str, Sequence[int]] = {}
    if "intermediate_size" in plan.units:
        keep["ffn"] = plan.units["intermediate_size"][position]
    if "num_key_value_heads" in plan.units:
        keep["kv"] = plan.units["num_key_value_heads"][position]
    if "num_attention_heads" in plan.units:
        keep["heads"] = plan.units["num_attention_heads"][position]
    totals = {**binding.sizes, "ffn": binding.sizes["ffn"] * binding.sizes.get("experts", 1)}
    return {size: kept for size, kept in keep.items() if list(kept) != list(range(totals[size]))}


Merges = Sequence[Sequence[int]]
"""For each new KV head, the heads that it is the mean of; all of one length."""


def merge_tensor(
    tensor: torch.Tensor, bound: BoundTensor, sizes: Mapping[str, int], keep: Keep, merges: Merges
) -> torch.Tensor:
    """Return the part of a tensor that stays, with KV heads replaced by the means of those that they were merged from.

    Query heads read the mean instead of their own head: exact where the merged heads are identical.

    Args:
        tensor: The whole tensor.
        bound: Its description.
        sizes: The model's sizes.
        keep: What stays along the other sizes that change.
        merges: Which KV heads are merged.
    """
    if not bound.counts("kv"):
        return slice_tensor(tensor, bound, sizes, keep)
    picks = [[heads[i] for heads in merges] for i in range(len(merges[0]))]
    parts = [slice_tensor(tensor, bound, sizes, {**keep, "kv": pick}).float() for pick in picks]
    return torch.stack(parts).mean(dim=0).to(tensor.dtype)


def masked_state(binding: Binding, plan: Plan, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a model's tensors with all that the plan removes set to zero, in the original shapes.

    A layer whose every tensor is zero adds nothing to the residual stream, so it is the identity. The cut model has to
    give the same logits as this one: that is the proof that the cut is right.

    Args:
        binding: The model.
        plan: The plan.
        state: Tensor by name; names that the binding does not hold are returned as they are.
    """
    position = {layer: i for i, layer in enumerate(plan.layers)}
    masked = {}
    for name, tensor in state.items():
        bound = binding.tensors.get(name)
        if bound is None or bound.layer is None:
            masked[name] = tensor
        elif bound.layer not in position:
            masked[name] = torch.zeros_like(tensor)
        else:
            keep = kept_units(binding, plan, position[bound.layer])
            if plan.merges is not None:
                tensor = _spread_means(tensor, bound, binding.sizes, plan.merges[position[bound.layer]])
                keep = {size: kept for size, kept in keep.items() if size != "kv"}
            masked[name] = zero_removed(tensor, bound, binding.sizes, keep)
    return masked


def _spread_means(tensor: torch.Tensor, bound: BoundTensor, sizes: Mapping[str, int], merges: Merges) -> torch.Tensor:
    """Return a tensor in its own shape, every KV head replaced by the mean of its merge."""
    partners = {head: heads for heads in merges for head in heads}
    whole = [[partners[head][i] for head in range(sizes["kv"])] for i in range(len(merges[0]))]
    return merge_tensor(tensor, bound, sizes, {}, list(zip(*whole, strict=True)))
