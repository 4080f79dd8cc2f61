"""Zeros that the other weights make up for: against a direct solution, and against leaving them as they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.modeling.error_carry import DAMPING, error_carry
from optimum_ishrink.report.sparsity import Pattern, parse_pattern
from optimum_ishrink.sparsity.choosing import choose_zeros, magnitude_scores, wanda_scores
from optimum_ishrink.sparsity.closed_form import lost_energy, sparse_weight

PATTERNS = ("2:4", "4:8", "50%", "30%")


def correlated(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    sizes = torch.rand(width, generator=generator) * 3 + 0.1
    return (torch.randn(tokens, width, generator=generator) @ mixing + 0.3) * sizes


def direct(weight: torch.Tensor, moments: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Remove weights one by one; each time the inverse of what is left of the moments is computed anew."""
    weight = weight.double().clone()
    rows, columns = weight.shape
    damped = moments.double() / moments.double().diagonal().mean()
    damped = damped + DAMPING * torch.eye(columns, dtype=torch.float64)
    costs = [torch.linalg.inv(damped[column:, column:])[0, 0] for column in range(columns)]
    removed = torch.zeros(rows, columns, dtype=torch.bool)
    if not pattern.group:  # all columns are one block
        score = weight.square() / torch.stack(costs)
        lowest = score.flatten().argsort()[: round(pattern.share * weight.numel())]
        removed.view(-1)[lowest] = True
    for column in range(columns):
        if pattern.group and column % pattern.group == 0:
            part = slice(column, column + pattern.group)
            score = weight[:, part].square() / torch.stack(costs[part])
            removed[:, part].scatter_(1, score.argsort(dim=1)[:, : pattern.zeros], True)
        inverse = torch.linalg.inv(damped[column:, column:])
        for row in range(rows):
            if removed[row, column]:
                weight[row, column:] -= weight[row, column] / inverse[0, 0] * inverse[0]
                weight[row, column] = 0
    return weight


@pytest.mark.parametrize("text", PATTERNS)
def test_it_is_a_direct_optimal_brain_surgeon(text: str) -> None:
    weight = torch.randn(5, 16, generator=torch.Generator().manual_seed(4))
    inputs = correlated(64, 16)
    moments = inputs.T @ inputs
    found, removed = sparse_weight(weight, error_carry(moments), parse_pattern(text))
    expected = direct(weight, moments, parse_pattern(text))
    assert torch.equal(expected == 0, removed)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@given(st.integers(0, 50), st.sampled_from(PATTERNS))
def test_it_loses_less_output_than_the_same_zeros_left_alone(seed: int, text: str) -> None:
    pattern = parse_pattern(text)
    weight = torch.randn(12, 32, generator=torch.Generator().manual_seed(seed + 100))
    inputs = correlated(400, 32, seed)
    moments = inputs.T @ inputs
    found, _ = sparse_weight(weight, error_carry(moments), pattern)
    lost = lost_energy(weight, found, moments)
    small = weight.masked_fill(choose_zeros(magnitude_scores(weight), pattern, across_rows=True), 0)
    scores = wanda_scores(weight, inputs.square().sum(dim=0))
    by_input = weight.masked_fill(choose_zeros(scores, pattern, across_rows=False), 0)
    assert lost < lost_energy(weight, small, moments)
    assert lost < lost_energy(weight, by_input, moments)
    outputs = inputs @ weight.T
    torch.testing.assert_close(
        lost, float((inputs @ found.T - outputs).square().sum() / outputs.square().sum()), atol=1e-5, rtol=1e-3
    )


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("columns", [8, 128, 136, 264])
def test_the_pattern_holds_exactly(text: str, columns: int) -> None:
    pattern = parse_pattern(text)
    weight = torch.randn(6, columns, generator=torch.Generator().manual_seed(1))
    inputs = correlated(columns, columns)
    found, removed = sparse_weight(weight, error_carry(inputs.T @ inputs), pattern)
    assert (found[removed] == 0).all()
    assert (found[~removed] != 0).all()
    assert int(removed.sum()) == round(pattern.share * weight.numel())
    if pattern.group:
        assert (removed.unflatten(-1, (-1, pattern.group)).sum(-1) == pattern.zeros).all()
    again, _ = sparse_weight(weight, error_carry(inputs.T @ inputs), pattern)
    assert torch.equal(found, again)


def test_inputs_that_are_not_correlated_pass_nothing_on() -> None:
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(2))
    sizes = torch.rand(12, generator=torch.Generator().manual_seed(3)) + 0.5
    pattern = parse_pattern("2:4")
    found, removed = sparse_weight(weight, error_carry(sizes.square().diag()), pattern)
    torch.testing.assert_close(found, weight.masked_fill(removed, 0))


def test_no_inputs_at_all_leave_the_choice_to_the_weights() -> None:
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(2))
    pattern = parse_pattern("2:4")
    found, removed = sparse_weight(weight, error_carry(torch.zeros(12, 12)), pattern)
    assert torch.equal(removed, choose_zeros(weight.abs(), pattern, across_rows=False))
    assert torch.equal(found, weight.masked_fill(removed, 0))
