"""Which weights become zero, from their scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.errors import RequestError
from optimum_ishrink.report.sparsity import parse_pattern
from optimum_ishrink.sparsity.choosing import choose_zeros, magnitude_scores, wanda_scores


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 99), st.sampled_from(["2:4", "4:8"]))
def test_every_group_loses_its_lowest(seed: int, text: str) -> None:
    pattern = parse_pattern(text)
    scores = random(6, 16, seed=seed).abs()
    chosen = choose_zeros(scores, pattern, across_rows=False).unflatten(-1, (-1, pattern.group))
    assert (chosen.sum(-1) == pattern.zeros).all()
    groups = scores.unflatten(-1, (-1, pattern.group))
    highest_removed = groups.masked_fill(~chosen, -1).amax(-1)
    assert (highest_removed <= groups.masked_fill(chosen, torch.inf).amin(-1)).all()


def test_of_equal_weights_the_first_become_zero() -> None:
    chosen = choose_zeros(torch.ones(2, 8), parse_pattern("2:4"), across_rows=False)
    assert chosen.tolist() == [[True, True, False, False] * 2] * 2


@pytest.mark.parametrize(("text", "zeros"), [("50%", 40), ("12.5%", 10), ("99%", 79)])
def test_a_share_is_one_of_the_matrix_or_of_each_row(text: str, zeros: int) -> None:
    pattern, scores = parse_pattern(text), random(5, 16).abs()
    whole = choose_zeros(scores, pattern, across_rows=True)
    assert int(whole.sum()) == zeros
    assert scores[whole].max() <= scores[~whole].min()
    by_row = choose_zeros(scores, pattern, across_rows=False)
    assert (by_row.sum(dim=1) == round(pattern.share * 16)).all()


def test_scores_are_their_formulas() -> None:
    weight, inputs = random(3, 4), random(50, 4, seed=1)
    found = wanda_scores(weight, inputs.square().sum(dim=0))
    for row in range(3):
        for column in range(4):
            expected = abs(weight[row, column]) * inputs[:, column].norm()
            torch.testing.assert_close(found[row, column], expected)
    assert torch.equal(magnitude_scores(weight), weight.abs())


@pytest.mark.parametrize("text", ["", "3:4", "2:8", "50", "0%", "100%", "-5%", "2:4:8", "half", "5 %"])
def test_a_pattern_that_does_not_exist(text: str) -> None:
    with pytest.raises(RequestError, match="unknown sparsity .* it can be 2:4, 4:8, or a share such as 50%"):
        parse_pattern(text)
