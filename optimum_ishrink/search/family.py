"""Families: budgets of which each is tighter than the last, and models of which each is a part of the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from ..errors import RequestError
from ..planning.limits import HIGHER_IS_BETTER, Limit
from ..planning.nesting import is_nested
from ..report.plan import Plan
from ..report.search import FoundModel
from .allocation import Budget


def may_nest(families: Sequence[Sequence[Limit]]) -> bool:
    """Whether several budgets limit the same metrics, so that they can be a family.

    Args:
        families: The limits of each budget.
    """
    return len(families) > 1 and len({frozenset(limit.metric for limit in limits) for limits in families}) == 1


def check_family(families: Sequence[Sequence[Limit]], *, merges: bool) -> None:
    """Check that the models of a family can be parts of one another.

    Args:
        families: The limits of each budget.
        merges: Whether KV heads are merged.

    Raises:
        RequestError: They cannot.
    """
    if merges and may_nest(families):
        raise RequestError(
            "each model of a family is a part of the larger ones, which merged KV heads are not: leave out "
            "merge_key_value_heads, or search for one budget at a time"
        )


def family_order(budgets: Mapping[str, Budget]) -> tuple[str, ...] | None:
    """Return budgets from the loosest to the tightest, where they are a family.

    Args:
        budgets: The budgets by their texts.

    Returns:
        Their texts; None where there is one budget alone, where they limit different metrics, or where one is tighter
        than another in one metric and looser in another.
    """
    if not may_nest([budget.limits for budget in budgets.values()]):
        return None
    ordered = sorted(budgets, key=lambda target: _room(budgets[target]), reverse=True)
    rooms = [_room(budgets[target]) for target in ordered]
    for looser, tighter in pairwise(rooms):
        if any(after > before for before, after in zip(looser, tighter, strict=True)):
            return None
    return tuple(ordered)


def _room(budget: Budget) -> tuple[float, ...]:
    """Return what a budget allows of each metric, in the order of their names; more is looser."""
    room = {limit.metric: limit.against(budget.base[limit.metric]) for limit in budget.limits}
    return tuple(-room[name] if name in HIGHER_IS_BETTER else room[name] for name in sorted(room))


def best_of_family(
    models: Sequence[FoundModel], order: Sequence[str], plan_of: Callable[[FoundModel], Plan | None]
) -> dict[str, FoundModel | None]:
    """Return the best made model for each budget of a family, each a part of those for looser budgets.

    As many budgets as possible get a model. Among such choices, the loosest budget has the best one that it can have,
    then the next.

    Args:
        models: The models, with the budgets that they keep.
        order: Texts of the budgets, from the loosest to the tightest.
        plan_of: Returns the plan of a model; None for the base.
    """
    made = [each for each in models if each.measured is not None]
    plans = {each.name: plan_of(each) for each in made}
    known: dict[tuple[int, str | None], tuple[tuple[float, ...], tuple[FoundModel | None, ...]]] = {}

    def best(number: int, last: str | None) -> tuple[tuple[float, ...], tuple[FoundModel | None, ...]]:
        """Return the lowest key, budgets without a model first, and the models of the budgets from one on."""
        if number == len(order):
            return (0.0,), ()
        if (number, last) not in known:
            larger = None if last is None else plans[last]
            found = []
            for each in made:
                if order[number] in each.keeps and is_nested(larger, plans[each.name]):
                    (missing, *rest), chosen = best(number + 1, each.name)
                    found.append(((missing, each.figures.divergence, *rest), (each, *chosen)))
            (missing, *rest), chosen = best(number + 1, last)
            found.append(((missing + 1, 0.0, *rest), (None, *chosen)))
            known[number, last] = min(found, key=lambda entry: entry[0])
        return known[number, last]

    return dict(zip(order, best(0, None)[1], strict=True))
