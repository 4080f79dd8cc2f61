"""The plan of two cuts in a row, as one of the model that the first of them started from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ..architectures.binding import Binding
from ..architectures.config_edit import changed_keys
from ..architectures.description import EXPERTS, GROUPS, NEURONS
from ..report.plan import Choice, Plan
from .schedule_names import HEADS

Rows = tuple[tuple[int, ...], ...]


def composed(first: Plan, second: Plan, base: Binding, raw: Mapping[str, Any], edited: Mapping[str, Any]) -> Plan:
    """Return what two cuts in a row retain of the model that was cut first.

    Its layers and units are found by their numbers in the second plan, which counts what the first retained.

    Args:
        first: The plan of the first cut.
        second: The plan of the second, which was made of the result of the first. At most one of them cuts the
            vocabulary or ties the head, and none merges.
        base: The model that the first cut started from.
        raw: Its config.json.
        edited: The config.json of the result of the second cut.
    """
    merged = (first.merges, second.merges, first.expert_merges, second.expert_merges)
    assert not any(merged), "what was merged has no number in the base"
    assert first.vocabulary is None or second.vocabulary is None, "the vocabulary is cut once"
    layers = tuple(first.layers[place] for place in second.layers)
    units: dict[str, Rows] = {}
    for key in (EXPERTS, NEURONS, GROUPS, HEADS):
        if key in first.units or key in second.units:
            rows = [_row(first, second, key, place, base) for place in range(len(second.layers))]
            units[key] = tuple(rows)
    return replace(
        second,
        model=first.model,
        revision=first.revision,
        model_type=first.model_type,
        shape=dict(first.shape),
        layers=layers,
        units=units,
        config_changes=changed_keys(raw, edited),
        num_parameters=first.num_parameters,
        choice=_choice(first.choice, second.choice),
        inexact=tuple(dict.fromkeys((*first.inexact, *second.inexact))),
        vocabulary=first.vocabulary or second.vocabulary,
        tied_head=first.tied_head or second.tied_head,
        sparsity=second.sparsity,
    )


def _row(first: Plan, second: Plan, key: str, place: int, base: Binding) -> tuple[int, ...]:
    """Return the base's numbers of what both cuts retain in one layer of the result."""
    before = second.layers[place]
    known = _retained(first, key, before, base)
    if key == NEURONS and NEURONS not in second.units and EXPERTS in second.units:
        # Whole experts go with their neurons, which are counted through.
        width = second.shape[NEURONS]
        experts = second.units[EXPERTS][place]
        total = len(known) // width
        shared = range(second.shape[EXPERTS], total)
        kept = [*experts, *shared] if experts else range(total)
        return tuple(known[expert * width + unit] for expert in kept for unit in range(width))
    if key not in second.units:
        return known
    return tuple(known[unit] for unit in second.units[key][place])


def _retained(plan: Plan, key: str, place: int, base: Binding) -> tuple[int, ...]:
    """Return the base's numbers of what one cut retains in one of its layers."""
    if key in plan.units:
        return plan.units[key][place]
    if key != NEURONS:
        # A layer without experts has a row without any, whatever the others have.
        return tuple(range(plan.shape[key]))
    width = plan.shape[NEURONS]
    experts = plan.units[EXPERTS][place] if EXPERTS in plan.units else ()
    kept: Sequence[int] = range(base.mlps)
    if experts:
        kept = [*experts, *range(base.sizes["experts"], base.mlps)]
    return tuple(expert * width + unit for expert in kept for unit in range(width))


def _choice(first: Choice, second: Choice) -> Choice:
    """Return how both cuts chose; where both chose units of a kind, how the second did."""
    later = {field.name: value for field in fields(Choice) if (value := getattr(second, field.name)) is not None}
    return replace(first, **later)
