"""Which layers go: one after another, or in one span."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_planning import _SMOLLM2

from optimum_ishrink.errors import ShapeError
from optimum_ishrink.importance.layer_selection import choose_greedily, choose_span, removable_spans, summed_costs
from optimum_ishrink.planning.plan import ShapeRequest, resolve_shape
from optimum_ishrink.planning.selection import choose_layers

SCORES = st.lists(st.floats(0, 1), min_size=8, max_size=8)


@given(scores=SCORES, count=st.integers(2, 8), first=st.integers(0, 1), last=st.integers(0, 1))
def test_greedy_is_one_shot_where_removals_do_not_matter_to_each_other(
    scores: list[float], count: int, first: int, last: int
) -> None:
    values = torch.tensor(scores)
    greedy = choose_greedily(values, lambda left, gone: values[list(left)], count, first, last)
    assert greedy == choose_layers(values, count, first, last)


@given(scores=SCORES, partner=st.permutations(range(8)), count=st.integers(3, 8))
def test_greedy_takes_the_lowest_of_each_step(scores: list[float], partner: list[int], count: int) -> None:
    """A layer becomes vital once its partner is gone."""
    asked: list[tuple[int, ...]] = []

    def cost(layer: int, gone: Sequence[int]) -> float:
        return scores[layer] + 2 * (partner[layer] in gone)

    def score_again(left: Sequence[int], gone: tuple[int, ...]) -> torch.Tensor:
        assert set(left) == set(range(1, 7)) - set(gone)
        asked.append(gone)
        return torch.tensor([cost(layer, gone) for layer in left])

    kept = choose_greedily(torch.tensor(scores), score_again, count, 1, 1)
    gone: list[int] = []
    while len(gone) < 8 - count:
        left = [layer for layer in range(1, 7) if layer not in gone]
        costs = torch.tensor([cost(layer, gone) for layer in left])
        gone.append(left[int(costs.argmin())])
    assert kept == tuple(layer for layer in range(8) if layer not in gone)
    assert asked == [tuple(gone[: i + 1]) for i in range(8 - count - 1)]  # and not once more than it takes


@given(scores=SCORES, count=st.integers(1, 7), first=st.integers(0, 2), last=st.integers(0, 2))
def test_the_span_is_the_cheapest_that_may_go(scores: list[float], count: int, first: int, last: int) -> None:
    if 8 - count > 8 - first - last:
        with pytest.raises(ShapeError, match="that may go"):
            removable_spans(8, count, first, last)
        return
    spans = removable_spans(8, count, first, last)
    values = torch.tensor(scores, dtype=torch.float64)
    kept = choose_span(summed_costs(values, spans), spans, 8)
    gone = [layer for layer in range(8) if layer not in kept]
    assert gone == list(range(gone[0], gone[0] + 8 - count))
    assert first <= gone[0]
    assert gone[-1] < 8 - last
    sums = [sum(scores[start : start + 8 - count]) for start in range(first, 8 - last - (8 - count) + 1)]
    assert sum(scores[layer] for layer in gone) == pytest.approx(min(sums), abs=1e-9)


@pytest.mark.parametrize("choose", [choose_layers, lambda *a: choose_greedily(a[0], lambda *_: torch.ones(9), *a[1:])])
def test_protection_that_leaves_too_few(choose: object) -> None:
    assert callable(choose)
    with pytest.raises(ShapeError, match="cannot remove 3 of 4 layers: keep_first_layers=1 and keep_last"):
        choose(torch.ones(4), 1, 1, 1)


def test_protection_of_every_layer_is_refused_before_any_scoring() -> None:
    _, binding = _SMOLLM2
    with pytest.raises(ShapeError, match="num_hidden_layers=29 is fewer than the 20 first and 10 last layers"):
        resolve_shape(binding, ShapeRequest({"num_hidden_layers": 29}, keep_first_layers=20, keep_last_layers=10))
    request = ShapeRequest({}, "params=-15%", keep_first_layers=20, keep_last_layers=10, prune=("num_hidden_layers",))
    with pytest.raises(ShapeError, match="keep_first_layers=20 and keep_last_layers=10 leave none of 30 layers"):
        resolve_shape(binding, request)


def test_a_target_moves_only_what_it_may() -> None:
    _, binding = _SMOLLM2
    for key, target in (("num_hidden_layers", "params=-10.5%"), ("intermediate_size", "params=-14.8%")):
        shape = resolve_shape(binding, ShapeRequest({}, target, prune=(key,)))
        assert {name for name in shape if shape[name] != binding.shape[name]} == {key}
    given_too = ShapeRequest({"num_hidden_layers": 29}, "params=-15%", prune=("intermediate_size",))
    shape = resolve_shape(binding, given_too)
    assert shape["num_hidden_layers"] == 29
    assert shape["num_key_value_heads"] == 3
    with pytest.raises(ShapeError, match="prune says what a target may move, and there is none; add one"):
        resolve_shape(binding, ShapeRequest({"num_hidden_layers": 29}, prune=("intermediate_size",)))
