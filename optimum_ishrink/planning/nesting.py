"""Models of one base that are parts of one another: what the smaller retains, the larger retains as well."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ..architectures.description import LAYERS
from ..report.plan import Plan


def confined_scores(scores: Mapping[str, torch.Tensor], within: Plan) -> dict[str, torch.Tensor]:
    """Return scores by which what another model has lost goes first.

    Args:
        scores: Config key to importance: shape (layers,) for `num_hidden_layers`, (layers, units) for the others.
        within: The other model's plan, of the same base. It retains at least as much of every dimension as is asked.

    Returns:
        The same, where what the plan does not retain has minus infinity. A layer that it does not retain has no
        retained units either: they are chosen in no layer that stays.
    """
    found = dict(scores)
    if LAYERS in found:
        found[LAYERS] = found[LAYERS].clone()
        found[LAYERS][list(removed_layers(within))] = -math.inf
    for key, by_layer in within.units.items():
        if key in found:
            least = torch.full_like(found[key], -math.inf)
            for layer, units in zip(within.layers, by_layer, strict=True):
                least[layer, list(units)] = found[key][layer, list(units)]
            found[key] = least
    return found


def removed_layers(plan: Plan) -> tuple[int, ...]:
    """Return the layers that a plan removes, ascending.

    Args:
        plan: The plan.
    """
    retained = set(plan.layers)
    return tuple(layer for layer in range(plan.shape[LAYERS]) if layer not in retained)


def is_nested(larger: Plan | None, smaller: Plan | None) -> bool:
    """Whether a model retains nothing that a larger one has lost: rows, layers, and in each of these all units.

    Args:
        larger: The larger model's plan; None for the base itself.
        smaller: The smaller model's plan, of the same base; None for the base itself.
    """
    if larger is None:
        return True
    if smaller is None or any(plan.merges or plan.expert_merges for plan in (larger, smaller)):
        return False
    if not set(smaller.layers) <= set(larger.layers):
        return False
    if larger.vocabulary is not None and (
        smaller.vocabulary is None or not set(smaller.vocabulary.rows) <= set(larger.vocabulary.rows)
    ):
        return False
    return all(_units_are_nested(key, larger, smaller) for key in larger.units)


def _units_are_nested(key: str, larger: Plan, smaller: Plan) -> bool:
    """Whether the retained units of one dimension are among the larger model's, in every layer that is left."""
    if key not in smaller.units:  # it retains them all
        return all(len(units) == larger.shape[key] for units in larger.units[key])
    before = dict(zip(larger.layers, larger.units[key], strict=True))
    after = zip(smaller.layers, smaller.units[key], strict=True)
    return all(set(units) <= set(before[layer]) for layer, units in after)
