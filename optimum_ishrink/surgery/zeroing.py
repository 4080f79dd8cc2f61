"""A model with all that a plan removes at zero, which the cut model has to equal: that is the proof of a cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..architectures.binding import Binding, BoundTensor
from ..architectures.description import EXPERTS
from ..architectures.slicing import zero_removed
from ..errors import ArchitectureError
from ..report.plan import Plan
from .expert_merge import ExpertMerger
from .units import Merges, merge_tensor, retained_units


def masked_state(binding: Binding, plan: Plan, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a model's tensors with all that the plan removes set to zero, in the original shapes.

    A layer whose every tensor is zero adds nothing to the residual stream, so it is the identity. The cut model has to
    give the same logits as this one. Rows of the vocabulary stay: their logits depend on no others.

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
        model: The original; its biases of the choice change for good.
        plan: The plan.

    Raises:
        ArchitectureError: It cannot be told which tensor the router is, or the model did not compute it as a linear
            layer.
    """
    count = plan.shape.get(EXPERTS, 0)
    dropped: dict[int, torch.Tensor] = {}
    for position, layer in enumerate(plan.layers):
        kept = plan.units.get(EXPERTS, ((),) * len(plan.layers))[position]
        if not kept:
            continue
        gone = torch.tensor(sorted(set(range(count)) - set(kept)))
        named = [*model.named_parameters(), *model.named_buffers()]
        routing = {name: tensor for name, tensor in named if f"layers.{layer}." in name and ".experts." not in name}
        matrices = [tensor for tensor in routing.values() if tensor.dim() == 2 and 1 < len(tensor) == count]
        if len(matrices) != 1:
            raise ArchitectureError(
                f"layer {layer} has {len(matrices)} matrices with a row for each of {count} experts, so that its "
                "router cannot be told; say in the description that num_experts is fixed"
            )
        dropped[matrices[0].data_ptr()] = gone
        with torch.no_grad():
            for name, tensor in routing.items():
                if "bias" in name and tensor.shape[-1:] == (count,):
                    tensor.index_fill_(-1, gone, -torch.inf)
    if not dropped:
        yield
        return
    routers = _Routers(dropped)
    with routers:
        yield
    if routers.unused:
        raise ArchitectureError(
            f"{len(routers.unused)} routers are not computed as linear layers, so that dropped experts cannot be left "
            "out of account; say in the description that num_experts is fixed"
        )


class _Routers(TorchFunctionMode):
    """Sets logits of dropped experts to minus infinity wherever a router's weight is multiplied with."""

    def __init__(self, dropped: Mapping[int, torch.Tensor]) -> None:
        super().__init__()
        self.dropped = dropped
        self.unused = set(dropped)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is not torch.nn.functional.linear:
            return output
        weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
        gone = self.dropped.get(weight.data_ptr())
        if gone is None:
            return output
        self.unused.discard(weight.data_ptr())
        return output.index_fill(-1, gone, -torch.inf)


def _spread_means(tensor: torch.Tensor, bound: BoundTensor, sizes: Mapping[str, int], merges: Merges) -> torch.Tensor:
    """Return a tensor in its original shape, with every KV head replaced by the mean of its group."""
    partners = {head: heads for heads in merges for head in heads}
    whole = [[partners[head][i] for head in range(sizes["kv"])] for i in range(len(merges[0]))]
    return merge_tensor(tensor, bound, sizes, {}, list(zip(*whole, strict=True)))
