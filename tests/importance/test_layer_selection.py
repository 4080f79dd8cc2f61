"""Which layers to remove: one after another, or in one span."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.architectures.layer_order import LayerOrder
from optimum_ishrink.importance.layer_selection import (
    allows,
    choose_greedily,
    choose_span,
    removable_spans,
    summed_costs,
)

SCORES = st.lists(st.floats(0, 1), min_size=8, max_size=8)


@given(scores=SCORES, count=st.integers(2, 8), first=st.integers(0, 1), last=st.integers(0, 1))
def test_greedy_is_one_shot_where_removals_are_independent(
    scores: list[float], count: int, first: int, last: int
) -> None:
    values = torch.tensor(scores)
    removable = range(first, 8 - last)
    retained = choose_greedily(values, lambda remaining, _: values[list(remaining)], count, removable)
    removed = sorted(removable, key=lambda layer: (float(values[layer]), layer))[: 8 - count]
    assert retained == tuple(layer for layer in range(8) if layer not in removed)


@given(scores=SCORES, partner=st.permutations(range(8)), count=st.integers(3, 8))
def test_greedy_removes_the_lowest_of_each_step(scores: list[float], partner: list[int], count: int) -> None:
    """A layer becomes vital once its partner is removed."""
    asked: list[tuple[int, ...]] = []

    def cost(layer: int, removed: Sequence[int]) -> float:
        return scores[layer] + 2 * (partner[layer] in removed)

    def score_again(remaining: Sequence[int], removed: tuple[int, ...]) -> torch.Tensor:
        assert set(remaining) == set(range(1, 7)) - set(removed)
        asked.append(removed)
        return torch.tensor([cost(layer, removed) for layer in remaining])

    retained = choose_greedily(torch.tensor(scores), score_again, count, range(1, 7))
    removed: list[int] = []
    while len(removed) < 8 - count:
        remaining = [layer for layer in range(1, 7) if layer not in removed]
        costs = torch.tensor([cost(layer, removed) for layer in remaining])
        removed.append(remaining[int(costs.argmin())])
    assert retained == tuple(layer for layer in range(8) if layer not in removed)
    assert asked == [tuple(removed[: i + 1]) for i in range(8 - count - 1)]  # and not once more than it takes


@given(scores=SCORES, count=st.integers(1, 8), first=st.integers(0, 1), last=st.integers(0, 1))
def test_greedy_keeps_an_order_that_can_be_kept(scores: list[float], count: int, first: int, last: int) -> None:
    removable, count = range(first, 8 - last), max(count, first + last)
    order = LayerOrder(tuple("sfsfsfsf"), tuple("sfsfsfsf"[:count]))
    values = torch.tensor(scores)
    retained = choose_greedily(values, lambda remaining, _: values[list(remaining)], count, removable, order)
    if order.can_follow(range(8), removable):
        assert [order.kinds[layer] for layer in retained] == list(order.places)
    else:  # the plan refuses it afterwards
        assert retained == choose_greedily(values, lambda remaining, _: values[list(remaining)], count, removable)


def test_spans_that_keep_an_order() -> None:
    order = LayerOrder(tuple("ssfssfssf"), tuple("ssfssf"))
    spans = [span for span in removable_spans(3, range(9)) if allows(order, range(*span), 9, range(9))]
    assert spans == removable_spans(3, range(9))  # a whole period, wherever it begins
    order = LayerOrder(tuple("ssfssfssf"), tuple("ssfsss"))
    assert not any(allows(order, range(*span), 9, range(9)) for span in removable_spans(3, range(9)))
    assert allows(None, range(3), 9, range(9))


@given(scores=SCORES, count=st.integers(1, 7), first=st.integers(0, 2), last=st.integers(0, 2))
def test_the_span_is_the_cheapest_that_can_be_removed(scores: list[float], count: int, first: int, last: int) -> None:
    spans = removable_spans(8 - count, range(first, 8 - last))
    if 8 - count > 8 - first - last:
        assert spans == []
        return
    values = torch.tensor(scores, dtype=torch.float64)
    retained = choose_span(summed_costs(values, spans), spans, 8)
    removed = [layer for layer in range(8) if layer not in retained]
    assert removed == list(range(removed[0], removed[0] + 8 - count))
    assert first <= removed[0]
    assert removed[-1] < 8 - last
    sums = [sum(scores[start : start + 8 - count]) for start in range(first, 8 - last - (8 - count) + 1)]
    assert sum(scores[layer] for layer in removed) == pytest.approx(min(sums), abs=1e-9)
