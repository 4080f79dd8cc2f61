from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_ishrink.errors import DataError, NotFiniteError
from optimum_ishrink.surgery.few_tokens import (
    Rows,
    choose_repair_by_rows,
    choose_weight,
    empty_folds,
    solve_by_rows,
)
from optimum_ishrink.surgery.least_squares import Moments, choose_repair, solve_ridge


def problem(tokens: int, width: int, outputs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return inputs, targets and a weight that is nearly the one that gives them; channels differ in size."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator) * torch.logspace(-1, 1, width)
    true = torch.randn(outputs, width, generator=generator)
    y = x @ true.T + 0.1 * torch.randn(tokens, outputs, generator=generator)
    return x, y, true + 0.3 * torch.randn(outputs, width, generator=generator)


def folds_of(kind: type[Rows] | type[Moments], x: torch.Tensor, y: torch.Tensor, parts: int) -> list[Rows | Moments]:
    """Return the tokens in folds of either kind, each added in two batches."""
    found: list[Rows | Moments] = []
    for part in range(parts):
        fold = Rows() if kind is Rows else Moments.zeros(torch.empty(y.shape[1], x.shape[1]))
        for start in (part, part + parts):
            fold.add(x[start :: 2 * parts], y[start :: 2 * parts])
        found.append(fold)
    return found


@settings(deadline=None)
@given(st.integers(4, 40), st.integers(1, 60), st.integers(1, 9), st.integers(2, 4), st.integers(0, 99))
def test_rows_give_what_their_sums_give(tokens: int, width: int, outputs: int, parts: int, seed: int) -> None:
    x, y, w = problem(tokens, width, outputs, seed)
    expected, ridge, before, after = choose_repair(folds_of(Moments, x, y, parts), w)  # type: ignore[arg-type]
    solved, by_rows, before_by_rows, after_by_rows = choose_repair_by_rows(folds_of(Rows, x, y, parts), w)  # type: ignore[arg-type]
    assert before_by_rows == pytest.approx(before, rel=1e-3, abs=1e-5)
    assert after_by_rows == pytest.approx(after, rel=1e-3, abs=1e-5)
    if by_rows == ridge:  # two ridges may be as good but for rounding
        torch.testing.assert_close(solved, expected, rtol=1e-3, atol=1e-3)
    assert solved.dtype == torch.float64


def test_the_solution_is_that_of_the_sums_in_float64() -> None:
    x, y, w = (values.double() for values in problem(12, 3000, 5, 0))  # more than a block of columns
    for ridge in (0.01, 0.3, 10.0):
        expected = solve_ridge(x.T @ x, y.T @ x, w, ridge)
        solved = solve_by_rows(x, y - x @ w.T, w, ridge, x.square().sum(dim=0))
        torch.testing.assert_close(solved, expected, rtol=1e-7, atol=1e-7)


def test_rows_are_used_where_tokens_are_few() -> None:
    w = torch.zeros(3, 40)
    assert [type(fold) for fold in empty_folds(w, 2, 30, None)] == [Rows, Rows]
    assert [type(fold) for fold in empty_folds(w, 3, 31, None)] == [Moments] * 3
    assert [type(fold) for fold in empty_folds(w, 2, 30, 1)] == [Moments] * 2  # a limit of the rank needs the sums
    for rank in (None, 1):
        x, y, w = problem(30, 40, 3, 1)
        folds = empty_folds(w, 2, 30, rank)
        for part, fold in enumerate(folds):
            fold.add(x[part::2], y[part::2])
            fold.put_away()
        assert sum(fold.tokens for fold in folds) == 30
        weight, ridge, before, after = choose_weight(folds, w, None, rank)
        assert not folds and ridge is not None and after < before
        assert rank is None or torch.linalg.matrix_rank(weight - w) == rank


def test_a_weight_that_is_already_best_is_retained() -> None:
    x, _, w = problem(8, 20, 3, 2)
    exact, ridge, before, after = choose_repair_by_rows(folds_of(Rows, x, x @ w.T, 2), w)  # type: ignore[arg-type]
    assert ridge is None and before == after
    assert torch.equal(exact, w.double())


def test_a_fold_without_tokens_is_no_error() -> None:
    x, y, w = problem(8, 20, 3, 3)
    full, empty = Rows(), Rows()
    full.add(x, y)
    empty.add(x[:0], y[:0])
    weight, ridge, before, after = choose_repair_by_rows([full, empty], w)
    assert ridge is None and before == after
    assert torch.equal(weight, w.double())


def test_rows_that_cannot_be_solved_are_refused() -> None:
    broken = Rows()
    broken.add(torch.full((3, 9), float("inf")), torch.ones(3, 1))
    with pytest.raises(NotFiniteError, match="not finite"):
        choose_repair_by_rows([broken, broken], torch.ones(1, 9))
    same = torch.ones(2, 4)
    with pytest.raises(DataError, match="too uniform to solve with a ridge of 0"):
        solve_by_rows(same, torch.ones(2, 1), torch.ones(1, 4), 0.0, same.square().sum(dim=0))
