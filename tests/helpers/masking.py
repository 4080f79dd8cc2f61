"""The original model with all that a plan removes set to zero, which the cut model has to equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from optimum_ishrink.architectures.binding import Binding, BoundTensor
from optimum_ishrink.architectures.slicing import zero_removed
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.surgery.expert_merge import ExpertMerger
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
            if plan.expert_merges is not None:
                merger = ExpertMerger(
                    lambda name: state[name].clone(), binding, bound.layer, plan.expert_merges[position[bound.layer]]
                )
                tensor = merger(bound) if merger.changes(bound) else tensor
            masked[name] = zero_removed(tensor, bound, binding.sizes, retained)
    return masked


@contextmanager
def unrouted(model: Any, plan: Plan) -> Iterator[None]:
    """Set the router logits of all experts that a plan drops to minus infinity, and biases of the choice with them.

    That is what dropping means for any order of softmax (or sigmoid), top-k and renormalisation: the probability of
    such an expert is zero, no token is routed to it, and it is in no sum that a gate weight is divided by.

    Args:
        model: The original.
        plan: The plan.
    """
    count = plan.shape.get("num_experts", 0)
    dropped: dict[int, torch.Tensor] = {}
    for position, layer in enumerate(plan.layers):
        kept = plan.units.get("num_experts", ((),) * len(plan.layers))[position]
        if not kept:
            continue
        gone = torch.tensor(sorted(set(range(count)) - set(kept)))
        named = [*model.named_parameters(), *model.named_buffers()]
        routing = {name: tensor for name, tensor in named if f"layers.{layer}." in name and ".experts." not in name}
        matrices = [tensor for tensor in routing.values() if tensor.dim() == 2 and 1 < len(tensor) == count]
        assert len(matrices) == 1, "which tensor is the router?"
        dropped[matrices[0].data_ptr()] = gone
        with torch.no_grad():
            for name, tensor in routing.items():
                if "bias" in name and tensor.shape[-1:] == (count,):
                    tensor.index_fill_(-1, gone, -torch.inf)
    linear, unused = torch.nn.functional.linear, set(dropped)

    def masked(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        output = linear(inputs, weight, bias)
        unused.discard(weight.data_ptr())
        gone = dropped.get(weight.data_ptr())
        return output if gone is None else output.index_fill(-1, gone, -torch.inf)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", masked)
        yield
    assert not unused, "a router does not call `torch.nn.functional.linear`"


def _spread_means(tensor: torch.Tensor, bound: BoundTensor, sizes: Mapping[str, int], merges: Merges) -> torch.Tensor:
    """Return a tensor in its original shape, with every KV head replaced by the mean of its group."""
    partners = {head: heads for heads in merges for head in heads}
    whole = [[partners[head][i] for head in range(sizes["kv"])] for i in range(len(merges[0]))]
    return merge_tensor(tensor, bound, sizes, {}, list(zip(*whole, strict=True)))
