"""What the measurements amount to: a sentence, and the shrink that follows from it. Arithmetic over measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..architectures.description import GROUPS, LAYERS, NEURONS
from ..errors import ShapeError
from ..report.analysis import LayerSensitivity, SparsityLevel
from ..report.measurement import Measurement
from .zeroing import KINDS

_NAMED = (3, 8)
"""How many sensitive layers are named at least and at most."""


@dataclass(frozen=True)
class Advice:
    """What follows from an analysis.

    Args:
        text: One line.
        changes: Values for an `IShrinkConfig`; empty when no measured level stays below the threshold.
        finer_levels: Levels in percent that are worth measuring then.
    """

    text: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    finer_levels: tuple[float, ...] = ()


def furthest_below(levels: Sequence[SparsityLevel], max_divergence: float) -> SparsityLevel | None:
    """Return the highest level up to which the divergence stays below a threshold, or None when none does.

    Args:
        levels: One kind's levels, sparsities ascending.
        max_divergence: KL divergence in nats per token.
    """
    best = None
    for level in levels:
        if level.measured("kl_divergence").value > max_divergence:
            break
        if level.removed_parameters:
            best = level
    return best


def protection_needed(sensitivity: Sequence[LayerSensitivity], max_divergence: float) -> tuple[int, int]:
    """Return how many first and last layers cost more than the threshold alone when they are skipped.

    Args:
        sensitivity: Every layer in order.
        max_divergence: KL divergence in nats per token.
    """

    def leading(layers: Sequence[LayerSensitivity]) -> int:
        light = (i for i, layer in enumerate(layers) if layer.block.value <= max_divergence)
        return next(light, len(layers))

    return leading(sensitivity), leading(sensitivity[::-1])


def advise(
    kinds: Mapping[str, Sequence[SparsityLevel]],
    sensitivity: Sequence[LayerSensitivity],
    max_divergence: float,
    *,
    shape: Mapping[str, int],
    protection: tuple[int, int],
    can_cut: Callable[[str], bool],
    check: Callable[[Mapping[str, Any]], None],
) -> Advice:
    """Say which kind is cheapest for the parameters that it removes, up to where, and which layers to protect.

    The cheapest kind is the one that removes most parameters before the divergence passes the threshold.

    Args:
        kinds: Levels by kind, sparsities ascending.
        sensitivity: Every layer in order.
        max_divergence: KL divergence in nats per token that is accepted.
        shape: The model's shape.
        protection: First and last layers that are protected already.
        can_cut: Whether this architecture can be cut in a kind.
        check: Raises ShapeError when values for an `IShrinkConfig` ask for a shape that the model cannot have.
    """
    below = {kind: furthest_below(levels, max_divergence) for kind, levels in kinds.items() if can_cut(kind)}
    ranked = sorted(
        ((kind, level) for kind, level in below.items() if level is not None),
        key=lambda found: -found[1].removed_parameters,
    )
    layers = _sensitive(sensitivity, max_divergence)
    repair = "zero-out repairs nothing: compensation and fine-tuning come on top"
    refused = ""
    if ranked:
        parts = [_describe(kind, level) for kind, level in ranked]
        parts += [f"{kind}: no measured level" for kind, level in below.items() if level is None]
        found = f"up to a KL divergence of {max_divergence:g} nats/token, {ranked[0][0]} removes most: " + "; ".join(
            parts
        )
        for kind, level in ranked:
            changes = _changes(kind, level, shape, protection, protection_needed(sensitivity, max_divergence))
            try:
                check(changes)
            except ShapeError as error:
                refused += f"; {kind} at that size has no shape that can be written ({error})"
                continue
            chosen = f"; the command takes {kind}" if kind != ranked[0][0] else ""
            return Advice(f"{found}{refused}{chosen}; {layers}; {repair}", changes)
    else:
        found = f"no measured level stays below a KL divergence of {max_divergence:g} nats/token"
    lowest = min(100 * level.sparsity for levels in kinds.values() for level in levels if level.sparsity)
    finer = tuple(round(lowest * i / 5, 2) for i in range(6))
    return Advice(f"{found}{refused}; measure finer levels; {layers}; {repair}", finer_levels=finer)


def _describe(kind: str, level: SparsityLevel) -> str:
    divergence = show(level.measured("kl_divergence"))
    return f"{kind} {level.removed_share:.1%} of the parameters at {level.sparsity:.0%} sparsity ({divergence})"


def show(measurement: Measurement) -> str:
    """Return a divergence with its standard error as people read it."""
    spread = "" if measurement.stderr is None else f" ± {measurement.stderr:.3f}"
    return f"{measurement.value:.3f}{spread}"


def _sensitive(sensitivity: Sequence[LayerSensitivity], max_divergence: float) -> str:
    worst = sorted(sensitivity, key=lambda layer: (-layer.block.value, layer.layer))
    count = min(_NAMED[1], max(_NAMED[0], sum(layer.block.value > max_divergence for layer in worst)))
    named = ", ".join(f"{layer.layer} ({layer.block.value:.3f})" for layer in worst[:count])
    return f"most sensitive layers, to protect (KL divergence when skipped): {named}"


def _changes(
    kind: str,
    level: SparsityLevel,
    shape: Mapping[str, int],
    protection: tuple[int, int],
    needed: tuple[int, int],
) -> dict[str, Any]:
    """Return the level as values for an `IShrinkConfig`: a target, with the other dimensions held where they are."""
    target = f"params=-{math.floor(1000 * level.removed_share) / 10:g}%"
    held = {key: None if key in KINDS[kind] else shape[key] for key in (LAYERS, GROUPS, NEURONS)}
    changes: dict[str, Any] = {
        **held,
        "num_attention_heads": None,
        "merge_key_value_heads": False,
        "target": target,
    }
    if LAYERS in KINDS[kind]:
        for name, there, wanted in zip(("keep_first_layers", "keep_last_layers"), protection, needed, strict=True):
            if wanted > there:
                changes[name] = wanted
    return changes
