"""Which units are removed first at which sparsity, and how many parameters belong to them. Arithmetic over scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..architectures.axes import layers_with
from ..architectures.binding import Binding
from ..architectures.description import GROUPS, LAYERS, NEURONS
from ..errors import ShapeError
from ..planning.selection import choose_layers, choose_units

KINDS: Mapping[str, tuple[str, ...]] = {
    "attention": (GROUPS,),
    "mlp": (NEURONS,),
    "layers": (LAYERS,),
    "all": (LAYERS, GROUPS, NEURONS),
}
"""What each kind removes, by config key."""


@dataclass(frozen=True)
class Removal:
    """What is set to zero in one measurement.

    Args:
        layers: Layers that are skipped.
        groups: For each layer of the model, the KV groups at zero, with their query heads.
        neurons: For each layer of the model, the neurons at zero; those of experts are counted through.
    """

    layers: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]

    @property
    def units(self) -> dict[str, int]:
        """Number of removed units in the whole model, by config key; those of skipped layers are not counted again."""
        counts = {LAYERS: len(self.layers), GROUPS: _total(self.groups), NEURONS: _total(self.neurons)}
        return {key: count for key, count in counts.items() if count}


def _total(rows: Iterable[Sequence[int]]) -> int:
    return sum(len(row) for row in rows)


def share_of(share: float, count: int) -> int:
    """Return a share of a count as a whole number, halves rounded up."""
    return math.floor(share * count + 0.5)


def kinds_of(binding: Binding) -> dict[str, tuple[str, ...]]:
    """Return what each kind removes from this model; `all` removes only what a cut could.

    Args:
        binding: The model.
    """
    dimensions = binding.description.dimensions
    found = dict(KINDS)
    found["all"] = tuple(key for key in KINDS["all"] if dimensions[key].fixed is None)
    return found


def choose_removal(
    binding: Binding,
    scores: Mapping[str, torch.Tensor],
    keys: Sequence[str],
    share: float,
    protection: tuple[int, int] = (0, 0),
) -> Removal:
    """Return what is removed at a sparsity: the lowest scored first.

    Layers are removed in the order of their scores, except the protected ones. Neurons are removed in equal number
    from every layer (and expert), as in a cut, because a config has one width. KV groups are ranked over the whole
    model: with three groups in a layer, a tenth cannot be the same number in each. They are compared by their share
    of their layer's score, since the scores themselves grow with the residual stream: those of SmolLM2-135M-Instruct's
    first and last layer differ by a factor of 3,800, and the first layer would lose all its attention before any other
    lost a group. Of several kinds at once, units are removed from the retained layers.

    Args:
        binding: The model.
        scores: Config key to importance: shape (layers,) for layers, (layers, units) for the others.
        keys: The dimensions that lose units.
        share: Share of each dimension's units, between 0 and 1.
        protection: First and last layers that are not skipped.

    Raises:
        ShapeError: The share requires more layers than are unprotected.
    """
    total = binding.sizes["layers"]
    empty: tuple[tuple[int, ...], ...] = ((),) * total
    retained = tuple(range(total))
    if LAYERS in keys:
        retained = choose_layers(scores[LAYERS], total - share_of(share, total), *protection)
    attention = layers_with(binding, GROUPS)
    groups = (
        _lowest(scores[GROUPS], [layer for layer in retained if layer in attention], share)
        if GROUPS in keys
        else empty
    )
    neurons = _narrow(binding, scores[NEURONS], retained, share) if NEURONS in keys else empty
    return Removal(tuple(sorted(set(range(total)) - set(retained))), groups, neurons)


def _lowest(scores: torch.Tensor, layers: Sequence[int], share: float) -> tuple[tuple[int, ...], ...]:
    """Return the units with the lowest share of their layer's score, of all the given layers together, by layer."""
    shares = scores / scores.sum(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    order = sorted((float(value), layer, unit) for layer in layers for unit, value in enumerate(shares[layer]))
    removed: list[list[int]] = [[] for _ in range(len(scores))]
    for _, layer, unit in order[: share_of(share, len(order))]:
        removed[layer].append(unit)
    return tuple(tuple(sorted(row)) for row in removed)


def _narrow(
    binding: Binding, scores: torch.Tensor, layers: Sequence[int], share: float
) -> tuple[tuple[int, ...], ...]:
    """Return the lowest scored neurons of each of the given layers, the same number in each that has any."""
    experts, width = binding.mlps, binding.sizes["ffn"]
    having = layers_with(binding, NEURONS)
    with_neurons = [layer for layer in layers if layer in having]
    retained = choose_units(scores, with_neurons, width - share_of(share, width), groups=experts)
    removed: list[tuple[int, ...]] = [()] * len(scores)
    for layer, units in zip(with_neurons, retained, strict=True):
        removed[layer] = tuple(sorted(set(range(width * experts)) - set(units)))
    return tuple(removed)


def removed_parameters(binding: Binding, removal: Removal) -> int:
    """Return how many of the model's parameters belong to what is removed.

    Args:
        binding: The model.
        removal: What is removed.
    """
    experts = binding.mlps
    whole = binding.layer_parameters(binding.sizes)
    at: dict[tuple[int, int], list[int]] = {}
    total = 0
    for layer, (groups, neurons) in enumerate(zip(removal.groups, removal.neurons, strict=True)):
        if layer in removal.layers:
            total += whole[layer]
            continue
        size = (binding.sizes["kv"] - len(groups), binding.sizes["ffn"] - len(neurons) // experts)
        if size not in at:
            at[size] = binding.layer_parameters(binding.resized({GROUPS: size[0], NEURONS: size[1]}))
        total += whole[layer] - at[size][layer]
    return total


def check_levels(binding: Binding, levels: Sequence[float], protection: tuple[int, int]) -> None:
    """Check that every level leaves the protected layers alone, before any long work.

    Args:
        binding: The model.
        levels: Shares between 0 and 1.
        protection: First and last layers that are not skipped.

    Raises:
        ShapeError: A level requires more layers than are unprotected; the message names the highest that does not.
    """
    total = binding.sizes["layers"]
    free = max(0, total - sum(protection))
    bad = [level for level in levels if share_of(level, total) > free]
    if bad:
        raise ShapeError(
            f"a level of {100 * bad[0]:g} would skip {share_of(bad[0], total)} of {total} layers, but "
            f"{protection[0]} first and {protection[1]} last ones are protected; give levels up to "
            f"{math.floor(100 * (free + 0.49) / total)}, or lower keep_first_layers or keep_last_layers"
        )
