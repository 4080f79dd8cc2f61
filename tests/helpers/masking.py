"""The original model with all that a plan removes set to zero, which the cut model has to equal."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from optimum_ishrink.architectures.binding import Binding, BoundTensor
from optimum_ishrink.architectures.slicing import zero_removed
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.surgery.units import Merges, merge_tensor, retained_units


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
            retained = retained_units(binding, plan, position[bound.layer])
            if plan.merges is not None:
                tensor = _spread_means(tensor, bound, binding.sizes, plan.merges[position[bound.layer]])
                retained = {size: units for size, units in retained.items() if size != "kv"}
            masked[name] = zero_removed(tensor, bound, binding.sizes, retained)
    return masked


def _spread_means(tensor: torch.Tensor, bound: BoundTensor, sizes: Mapping[str, int], merges: Merges) -> torch.Tensor:
    """Return a tensor in its original shape, with every KV head replaced by the mean of its group."""
    partners = {head: heads for heads in merges for head in heads}
    whole = [[partners[head][i] for head in range(sizes["kv"])] for i in range(len(merges[0]))]
    return merge_tensor(tensor, bound, sizes, {}, list(zip(*whole, strict=True)))
