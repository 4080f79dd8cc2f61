"""From scores to what is retained."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.errors import ShapeError
from optimum_ishrink.planning.selection import choose_heads, choose_layers, choose_units, group_similar


@given(
    scores=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    count=st.integers(3, 8),
    first=st.integers(0, 2),
    last=st.integers(0, 1),
)
def test_protected_layers_are_retained_and_the_lowest_are_removed(
    scores: list[float], count: int, first: int, last: int
) -> None:
    values = torch.tensor(scores)
    retained = choose_layers(values, count, first, last)
    assert len(retained) == count
    assert list(retained) == sorted(retained)
    assert {*range(first), *range(8 - last, 8)} <= set(retained)
    removed = set(range(8)) - set(retained)
    free = set(retained) - {*range(first), *range(8 - last, 8)}
    assert all(values[a] <= values[b] for a in removed for b in free)


def test_protection_that_leaves_too_few_layers_to_remove() -> None:
    with pytest.raises(ShapeError, match="cannot remove 3 of 4 layers: keep_first_layers=1 and keep_last_layers=1"):
        choose_layers(torch.ones(4), 1, 1, 1)


def test_units_are_chosen_within_their_layer() -> None:
    scores = torch.tensor([[1.0, 9.0, 5.0], [100.0, 300.0, 200.0], [0.0, 0.0, 0.0]])
    assert choose_units(scores, (0, 1, 2), 2) == ((1, 2), (1, 2), (0, 1))
    assert choose_units(scores, (1,), 1) == ((1,),)


def test_query_heads_are_chosen_within_their_group() -> None:
    scores = torch.tensor([[1.0, 5.0, 3.0, 2.0, 9.0, 8.0]])
    assert choose_heads(scores, [[[0, 1, 2], [3, 4, 5]]], (0,), 2) == ((1, 2, 4, 5),)
    assert choose_heads(None, [[[3, 4, 5]]], (0,), 3) == ((3, 4, 5),)


def test_neurons_are_chosen_within_their_expert() -> None:
    scores = torch.tensor([[1.0, 9.0, 5.0, 8.0, 2.0, 3.0]])
    assert choose_units(scores, (0,), 2, groups=2) == ((1, 2, 3, 5),)


def test_similar_heads_are_grouped() -> None:
    similarity = torch.eye(4)
    for a, b, value in ((0, 3, 0.9), (1, 2, 0.8), (0, 1, 0.5)):
        similarity[a, b] = similarity[b, a] = value
    assert group_similar(similarity, 2) == ((0, 3), (1, 2))
    assert group_similar(similarity, 1) == ((0, 1, 2, 3),)
