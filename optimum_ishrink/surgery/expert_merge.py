"""Experts merged into others: weighted means of their weights, with their neurons aligned before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from ..architectures.binding import Binding, BoundTensor
from ..architectures.expressions import parse_axes
from ..architectures.slicing import unit_positions
from ..report.plan import ExpertMerge

_EXPERTS = parse_axes("experts")[0]

Read = Callable[[str], torch.Tensor]
"""Reads a tensor by its name."""


def expert_tensors(binding: Binding, layer: int) -> list[BoundTensor]:
    """Return the tensors of a layer that experts are made of, without the rows of the router.

    Args:
        binding: The model.
        layer: Index of the layer.
    """
    own = binding.layer_tensors(layer)
    stacked = [bound for bound in own if bound.axes and bound.axes[0] == _EXPERTS]
    # A bias of all experts has the axes of a router. It is beside the matrices.
    places = {_place(bound) for bound in stacked if len(bound.axes) == 3}
    return [bound for bound in own if bound.expert is not None] + [each for each in stacked if _place(each) in places]


def _place(bound: BoundTensor) -> str:
    return bound.name.rpartition(".")[0]


class ExpertMerger:
    """Merges the experts of one layer after another.

    The mean of weights is only of use where the same neuron of each expert does the same: a layer's experts give the
    same whatever the order of their neurons. So the neurons of each merged expert are first put in the order in which
    they are most like the retained expert's (`match_neurons`).

    Args:
        read: Reads a tensor of the checkpoint.
        binding: The model.
        layer: Index of the layer.
        merges: What each retained expert is made of.
    """

    def __init__(self, read: Read, binding: Binding, layer: int, merges: Sequence[ExpertMerge]) -> None:
        self._read = read
        self._sizes = binding.sizes
        self._tensors = expert_tensors(binding, layer)
        self._names = {bound.name for bound in self._tensors}
        self._merges = {merge.experts[0]: merge for merge in merges if len(merge.experts) > 1}
        self._order: dict[int, torch.Tensor] = {}

    def changes(self, bound: BoundTensor) -> bool:
        """Whether a tensor becomes a mean.

        Args:
            bound: The tensor.
        """
        here = bound.expert in self._merges if bound.expert is not None else bool(self._merges)
        return here and bound.name in self._names

    def __call__(self, bound: BoundTensor) -> torch.Tensor:
        """Return a whole tensor of the checkpoint in which every retained expert is its mean.

        Dropped experts, which the cut leaves out, are in it as they were.

        Args:
            bound: The tensor.
        """
        self._align()
        if bound.expert is not None:
            return self._mean(bound, self._merges[bound.expert], lambda expert: self._read(_of(bound, expert).name))
        whole = self._read(bound.name)
        means = {
            expert: self._mean(bound, merge, whole.__getitem__) for expert, merge in self._merges.items()
        }  # all of them, before the first is overwritten
        for expert, mean in means.items():
            whole[expert] = mean
        return whole

    def _mean(self, bound: BoundTensor, merge: ExpertMerge, part: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """Return the mean of one tensor over the experts of a group."""
        own = part(merge.experts[0])
        first = own.to(torch.promote_types(own.dtype, torch.float32))
        mean = first.clone()
        for expert, share in zip(merge.experts[1:], merge.shares[1:], strict=True):
            other = _reorder(part(expert).to(first), bound, self._sizes, self._order[expert])
            mean += share * (other - first)  # experts that are the same stay so to the bit
        return mean.to(own.dtype)

    def _align(self) -> None:
        """Find the order of the neurons of every merged expert."""
        if self._order:
            return
        stacked = {bound.name: self._read(bound.name) for bound in self._tensors if bound.expert is None}

        def features(expert: int) -> torch.Tensor:
            own = [
                (bound, stacked[bound.name][expert] if bound.expert is None else self._read(bound.name))
                for bound in self._tensors
                if bound.expert in (None, expert) and bound.counts("ffn")
            ]
            return torch.cat([_neurons(tensor, bound, self._sizes) for bound, tensor in own], dim=1)

        for merge in self._merges.values():
            target = features(merge.experts[0])
            for expert in merge.experts[1:]:
                self._order[expert] = match_neurons(target, features(expert))


def _of(bound: BoundTensor, expert: int) -> BoundTensor:
    """Return the same tensor of another expert."""
    assert bound.layer is not None
    return replace(bound, name=bound.in_layer(bound.layer, expert), expert=expert)


def _axis_of_neurons(bound: BoundTensor, sizes: Mapping[str, int]) -> tuple[int, torch.Tensor] | None:
    """Return the axis of one expert's tensor that counts neurons, and the positions of each, (neurons, positions)."""
    axes = bound.axes if bound.expert is not None else bound.axes[1:]
    for dim, axis in enumerate(axes):
        if any("ffn" in section.factors for section in axis):
            return dim, unit_positions(axis, sizes, "ffn")
    return None


def _neurons(tensor: torch.Tensor, bound: BoundTensor, sizes: Mapping[str, int]) -> torch.Tensor:
    """Return the weights of each neuron in one expert's tensor, float32, shape (neurons, weights)."""
    found = _axis_of_neurons(bound, sizes)
    assert found is not None
    dim, positions = found
    return tensor.movedim(dim, 0)[positions].flatten(1).float()


def _reorder(tensor: torch.Tensor, bound: BoundTensor, sizes: Mapping[str, int], order: torch.Tensor) -> torch.Tensor:
    """Return one expert's tensor with its neurons in another order: the new neuron `i` is the old one `order[i]`."""
    found = _axis_of_neurons(bound, sizes)
    if found is None:  # a bias of the output
        return tensor
    dim, positions = found
    index = torch.empty(tensor.shape[dim], dtype=torch.int64)
    index[positions.flatten()] = positions[order].flatten()
    return tensor.index_select(dim, index)


def match_neurons(target: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the order that brings the neurons of one expert beside those of another that they are most like.

    A neuron is all weights that go to it and from it. Pairs are taken greedily, the closest by cosine first: the best
    of all assignments takes the cube of the width, which is minutes for one pair of wide experts.

    Args:
        target: Weights of the neurons that stay where they are, shape (neurons, weights).
        other: Those of the neurons to match, the same shape.

    Returns:
        int64, shape (neurons,): which neuron of `other` goes to each place. Experts with the same neurons in the same
        places stay as they are.
    """
    count = len(target)
    normalize = torch.nn.functional.normalize
    cosine = normalize(target, dim=1) @ normalize(other, dim=1).T
    if bool((cosine.diagonal() >= cosine.amax(dim=1)).all()):  # no order is closer, nor is another needed among equals
        return torch.arange(count)
    order = torch.full((count,), -1, dtype=torch.int64)
    rows, columns = torch.arange(count), torch.arange(count)
    while len(rows):
        # Two that are each other's closest are a pair whatever the rest does, so each round takes all of these at
        # once. There is one at least: the closest pair of all.
        best, nearest = cosine.argmax(dim=1), cosine.argmax(dim=0)
        mutual = nearest[best] == torch.arange(len(rows))
        if not mutual.any():  # equals can prefer each other in a circle
            mutual[int(cosine.amax(dim=1).argmax())] = True
        order[rows[mutual]] = columns[best[mutual]]
        left = torch.ones(len(columns), dtype=torch.bool)
        left[best[mutual]] = False
        rows, columns, cosine = rows[~mutual], columns[left], cosine[~mutual][:, left]
    return order
