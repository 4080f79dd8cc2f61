"""Sites: the projections of a layer that compensation re-fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..architectures.axes import input_axis, input_readers
from ..architectures.binding import Binding, BoundTensor
from ..architectures.slicing import Keep, axis_index, slice_tensor
from ..report.plan import Plan


@dataclass(frozen=True)
class Site:
    """One projection.

    Args:
        bound: Its weight in the base.
        name: Its module's name within the layer.
        index: Retained input channels; None when all are retained, or when the cut model's own layer is run.
        weight: The weight as it was cut, shape (out, in), in the model's dtype.
        bias: Its bias, or None.
        absorbs: Whether it also replaces the dropped layers that follow it.
    """

    bound: BoundTensor
    name: str
    index: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor | None
    absorbs: bool

    def inputs(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the retained input channels."""
        return whole if self.index is None else whole[..., self.index]

    def apply(self, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the projection's output with another weight, in the model's dtype."""
        return torch.nn.functional.linear(inputs, weight, self.bias)

    def stored(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight of shape (out, in) in the layout of the file."""
        return weight.T if self.bound.transposed else weight


def sites_to_refit(binding: Binding, plan: Plan, layer: int, *, dropped: bool) -> list[tuple[BoundTensor, bool]]:
    """Return the projections of a layer to re-fit, the attention's before the MLP's.

    They are those whose inputs were cut; and, where the layers that follow were dropped, the MLP's, which can take
    over what is linear in them (ReplaceMe, arXiv:2505.02819, folded into the projection from the start).

    Args:
        binding: The base's binding.
        plan: The plan.
        layer: Index of the layer in the base.
        dropped: Whether the layer right after it was dropped.

    Returns:
        Each projection, and whether it also replaces the dropped layers.
    """
    found = []
    for key in ("num_attention_heads", "intermediate_size"):
        absorbs = dropped and key == "intermediate_size"
        if absorbs or plan.new_shape[key] < plan.shape[key]:
            readers = (bound for bound in input_readers(binding, key) if bound.layer == layer)
            # Fused experts are not modules that could be re-fitted one by one: they are left as they were cut.
            found += [(bound, absorbs) for bound in readers if bound.expert is None]
    return found


def make_site(base: Any, cut: Any, bound: BoundTensor, binding: Binding, retained: Keep, *, absorbs: bool) -> Site:
    """Return one projection as the plan cuts it.

    Args:
        base: The base's layer.
        cut: The cut model's layer, or None where the base's own layer is run with channels left unread.
        bound: The projection's weight in the base.
        binding: The base's binding.
        retained: What is retained in the layer, by size name.
        absorbs: Whether it also replaces the dropped layers that follow it.
    """
    assert bound.layer is not None
    name = bound.module.split(f".{bound.layer}.", 1)[1]
    projection = (base if cut is None else cut).get_submodule(name)
    weight, index = projection.weight.detach(), None
    if cut is None:
        index = axis_index(input_axis(bound), binding.sizes, retained)
        index = None if index is None else index.to(weight.device)
        weight = slice_tensor(weight, bound, binding.sizes, retained)
    weight = weight.T if bound.transposed else weight
    bias = None if projection.bias is None else projection.bias.detach()
    return Site(bound, name, index, weight, bias, absorbs)
