"""What a plan retains of each layer, and merged KV heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..architectures.binding import Binding, BoundTensor
from ..architectures.description import EXPERTS
from ..architectures.slicing import Keep, slice_tensor
from ..report.plan import Plan


def retained_units(binding: Binding, plan: Plan, position: int) -> Keep:
    """Return what is retained in one layer, by size name; sizes that do not change are left out.

    Args:
        binding: The model.
        plan: The plan.
        position: Position of the layer in `plan.layers`.
    """
    retained: dict[str, Sequence[int]] = {}
    if "intermediate_size" in plan.units:
        retained["ffn"] = plan.units["intermediate_size"][position]
    if "num_key_value_heads" in plan.units:
        retained["kv"] = plan.units["num_key_value_heads"][position]
    if "num_attention_heads" in plan.units:
        retained["heads"] = plan.units["num_attention_heads"][position]
    # A layer without experts retains none of them, and has nothing to cut.
    if plan.units.get(EXPERTS, ((),) * (position + 1))[position]:
        retained["experts"] = plan.units[EXPERTS][position]
    totals = {**binding.sizes, "ffn": binding.sizes["ffn"] * binding.mlps}
    return {size: units for size, units in retained.items() if list(units) != list(range(totals[size]))}


Merges = Sequence[Sequence[int]]
"""For each new KV head, the heads that it is the mean of; all of one length."""


def merge_tensor(
    tensor: torch.Tensor, bound: BoundTensor, sizes: Mapping[str, int], retained: Keep, merges: Merges
) -> torch.Tensor:
    """Return the retained part of a tensor, with KV heads replaced by the means of the heads that were merged.

    Query heads read the mean instead of their own head: exact where the merged heads are identical.

    Args:
        tensor: The whole tensor.
        bound: Its description.
        sizes: The model's sizes.
        retained: What is retained along the other sizes that change.
        merges: Which KV heads are merged.
    """
    if not bound.counts("kv"):
        return slice_tensor(tensor, bound, sizes, retained)
    picks = [[heads[i] for heads in merges] for i in range(len(merges[0]))]
    parts = [slice_tensor(tensor, bound, sizes, {**retained, "kv": pick}).float() for pick in picks]
    return torch.stack(parts).mean(dim=0).to(tensor.dtype)
