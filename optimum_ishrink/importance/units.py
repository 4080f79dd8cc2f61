"""Units: how many a layer has, which weights and channels belong to each, and the sums of their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..architectures.axes import input_axis, input_readers
from ..architectures.binding import Binding, BoundTensor
from ..architectures.description import DIMENSIONS, LAYERS, NEURONS
from ..architectures.expressions import axis_length
from ..architectures.slicing import sum_per_unit, unit_positions
from ..core.finite import kind_of
from ..errors import NotFiniteError, RequestError
from .criterion import UNIT_CRITERIA, Criterion

MOST_GROUPS = 32
"""Groups of neurons in a layer when a criterion removes them one after another, since each takes a separate pass."""


def choose_group_size(binding: Binding, criterion: Criterion, requested: int | None) -> int:
    """Return how many consecutive neurons are scored together.

    Args:
        binding: The model.
        criterion: The unit criterion.
        requested: The requested size; None takes 1, or for a criterion that removes units one by one the smallest
            divisor of the width that leaves at most `MOST_GROUPS` groups in a layer (or in one of its experts).

    Raises:
        RequestError: It does not divide the number of neurons; the message names the nearest sizes that do.
    """
    width = binding.sizes["ffn"]
    divisors = [size for size in range(1, width + 1) if width % size == 0]
    if requested is None:
        return next(size for size in divisors if not criterion.by_groups or width // size <= MOST_GROUPS)
    if requested not in divisors:
        near = [
            max(size for size in divisors if size < requested),
            *[size for size in divisors if size > requested][:1],
        ]
        raise RequestError(
            f"importance_group_size={requested} does not divide the {width:,} neurons of an MLP; "
            f"use {' or '.join(map(str, near))}"
        )
    return requested


@dataclass(frozen=True)
class Units:
    """The units of some dimensions of a model.

    Args:
        binding: The model.
        keys: Config keys of the dimensions.
        group: Consecutive neurons that form one unit.
    """

    binding: Binding
    keys: tuple[str, ...]
    group: int = 1

    def zeros(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return empty sums, float32: shape (layers,) for layers, (layers, units) for the others."""
        layers = self.binding.sizes["layers"]
        return {
            key: torch.zeros((layers,) if key == LAYERS else (layers, self._count(key)), device=device)
            for key in self.keys
        }

    def _count(self, key: str) -> int:
        """Return the number of units in a layer, over all of its experts."""
        if key != NEURONS:
            return self.binding.shape[key]
        return self.binding.shape[key] * self.binding.mlps // self.group

    def add(self, sums: Mapping[str, torch.Tensor], bound: BoundTensor, values: torch.Tensor) -> None:
        """Add one tensor's values to the sums of the units, or of the layer, that it belongs to.

        Args:
            sums: From `zeros`; they are changed.
            bound: The tensor's description.
            values: One value per weight, in the tensor's shape.
        """
        assert bound.layer is not None
        for key, total in sums.items():
            if key == LAYERS:
                total[bound.layer] += values.sum(dtype=torch.float32)
                continue
            per_unit = sum_per_unit(values, bound, self.binding.sizes, DIMENSIONS[key])
            total[bound.layer] += per_unit.view(total.shape[1], -1).sum(dim=1)

    def add_channels(self, sums: Mapping[str, torch.Tensor], bound: BoundTensor, values: torch.Tensor) -> None:
        """Like `add`, with one value per input channel of a projection, shape (channels,)."""
        self.add(sums, replace(bound, axes=(input_axis(bound),)), values)

    def readers(self, keys: Sequence[str] | None = None) -> dict[str, BoundTensor]:
        """Return the projections that read the units, by name.

        Args:
            keys: Only of these dimensions.
        """
        wanted = [key for key in (self.keys if keys is None else keys) if key != LAYERS]
        found = (bound for key in wanted for bound in input_readers(self.binding, key))
        return {bound.name: bound for bound in found if bound.expert is None}  # experts are fused in memory

    def channels(self, bound: BoundTensor, key: str) -> torch.Tensor:
        """Return the input channels of a projection that belong to each unit, int64, shape (units, channels).

        Args:
            bound: A projection that reads the units.
            key: The dimension's config key.
        """
        if bound.counts("shared"):  # its neurons are in order, those of one shared expert after those of another
            return torch.arange(axis_length(input_axis(bound), self.binding.sizes)).view(-1, self.group)
        positions = unit_positions(input_axis(bound), self.binding.sizes, DIMENSIONS[key])
        # A layer without experts has the neurons of one, in a mixture that has some of both.
        count = self.binding.sizes["ffn"] // self.group if key == NEURONS else self._count(key)
        return positions.view(count, -1)

    def place(self, bound: BoundTensor) -> slice:
        """Return where among a layer's units those of a projection are.

        Args:
            bound: A projection that reads them.
        """
        if bound.counts("shared"):
            return self.of_expert(self.binding.sizes["experts"], None)
        return self.of_expert(0) if bound.counts("ffn") else slice(None)

    def of_expert(self, expert: int, count: int | None = 1) -> slice:
        """Return where among a layer's units of neurons those of an expert are.

        Args:
            expert: The first expert.
            count: How many experts; None for all from this one on.
        """
        width = self.binding.sizes["ffn"] // self.group
        return slice(expert * width, None if count is None else (expert + count) * width)

    def scores(self, sums: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return sums on the CPU, with a group's score shared out evenly among its neurons.

        With equal shares a layer's sum does not depend on the size of the groups.
        """
        found = {key: total.float().cpu() for key, total in sums.items()}
        if NEURONS in found and self.group > 1:
            found[NEURONS] = found[NEURONS].repeat_interleave(self.group, dim=1) / self.group
        return found


def units_to_score(binding: Binding, criterion: Criterion, keys: tuple[str, ...], group_size: int | None) -> Units:
    """Return the units that a criterion scores, once it is known that it can.

    Args:
        binding: The model.
        criterion: A unit or layer criterion.
        keys: Config keys of the dimensions to score.
        group_size: Number of neurons to score together, or None.

    Raises:
        RequestError: The neurons belong to experts, and the criterion cannot see them there; or the groups do not
            divide them.
    """
    if NEURONS not in keys:
        return Units(binding, keys)
    if binding.mlps > 1 and not criterion.sees_experts:
        able = ", ".join(name for name in UNIT_CRITERIA if UNIT_CRITERIA[name].sees_experts)
        raise RequestError(f"{criterion.name!r} cannot see into experts; importance can be {able}")
    return Units(binding, keys, choose_group_size(binding, criterion, group_size))


def check_finite(scores: Mapping[str, torch.Tensor], advice: str) -> None:
    """Check that no score is NaN or inf.

    Args:
        scores: Config key to scores, the layers first.
        advice: What the message says to do next.

    Raises:
        DataError: One is; the message names the first layer.
    """
    for key, values in scores.items():
        bad = (~values.isfinite()).reshape(len(values), -1).any(dim=1).nonzero().flatten().tolist()
        if bad:
            raise NotFiniteError(
                f"the importance of {key} is not finite in layer {bad[0]} ({kind_of(values[bad[0]])}){advice}"
            )
