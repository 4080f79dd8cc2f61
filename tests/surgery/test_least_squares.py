from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.errors import DataError
from optimum_ishrink.surgery.least_squares import (
    RIDGES,
    Moments,
    choose_repair,
    descend,
    least_ridge,
    restrict_rank,
    solve_ridge,
)


def test_the_ridge_leads_from_least_squares_to_the_cut_weight() -> None:
    torch.manual_seed(0)
    x, y, w = torch.randn(200, 6), torch.randn(200, 3), torch.randn(3, 6)
    loose = solve_ridge(x.T @ x, y.T @ x, w, 1e-12)
    torch.testing.assert_close(loose.float(), torch.linalg.lstsq(x, y).solution.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(solve_ridge(x.T @ x, y.T @ x, w, 1e9).float(), w, atol=1e-5, rtol=1e-5)
    # The gradient of the ridge objective is zero at the solution.
    solved, strength = solve_ridge(x.T @ x, y.T @ x, w, 0.3), 0.3 * (x.T @ x).diagonal()
    gradient = (x.double() @ solved.T - y).T @ x.double() + strength * (solved - w)
    assert gradient.abs().max() < 1e-4


def test_a_map_of_restricted_rank_is_the_nearest_on_the_inputs() -> None:
    torch.manual_seed(0)
    x, update = torch.randn(200, 6) * torch.tensor([9.0, 1, 1, 1, 1, 0.1]), torch.randn(5, 6).double()
    gram = x.T @ x

    def error(change: torch.Tensor) -> float:
        return float((x.double() @ (change - update).T).square().sum())

    for rank in (1, 2, 4):
        best = restrict_rank(update, gram, rank)
        assert torch.linalg.matrix_rank(best) == rank
        left, size, right = torch.linalg.svd(update, full_matrices=False)
        assert error(best) < error(left[:, :rank] * size[:rank] @ right[:rank])
        for _ in range(20):
            near = best + 0.01 * torch.randn(5, rank).double() @ torch.linalg.svd(best).Vh[:rank]
            assert error(best) <= error(near)
    torch.testing.assert_close(restrict_rank(update, gram, 5), update)


@given(st.floats(1e-3, 1e3), st.integers(0, 4))
def test_the_units_of_a_channel_do_not_matter(factor: float, channel: int) -> None:
    torch.manual_seed(5)
    x, y, w = torch.randn(60, 5).double(), torch.randn(60, 2).double(), torch.randn(2, 5).double()
    scale = torch.ones(5).double()
    scale[channel] = factor
    z = x * scale
    plain, scaled = solve_ridge(x.T @ x, y.T @ x, w, 0.3), solve_ridge(z.T @ z, y.T @ z, w / scale, 0.3)
    torch.testing.assert_close(plain, scaled * scale, atol=1e-6, rtol=1e-6)


def test_directions_without_data_retain_the_weight() -> None:
    x, w = torch.zeros(50, 4), torch.randn(2, 4)
    x[:, 0] = torch.randn(50)
    solved = solve_ridge(x.T @ x, torch.ones(50, 2).T @ x, w, 0.01)
    torch.testing.assert_close(solved[:, 1:].float(), w[:, 1:])


def test_sums_that_cannot_be_solved_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        solve_ridge(torch.full((2, 2), float("nan")), torch.ones(1, 2), torch.ones(1, 2), 0.1)
    with pytest.raises(DataError, match="too uniform to solve"):
        solve_ridge(torch.tensor([[1.0, 5.0], [5.0, 1.0]]), torch.ones(1, 2), torch.ones(1, 2), 0.0)
    broken = Moments.zeros(torch.ones(1, 2))
    broken.add(torch.full((3, 2), float("inf")), torch.ones(3, 1))
    with pytest.raises(DataError, match="not finite"):
        choose_repair([broken, broken], torch.ones(1, 2))


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 99))
def test_sums_in_blocks_are_the_sums(width: int, tokens: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(tokens, width, generator=generator), torch.randn(tokens, 3, generator=generator)
    w = torch.randn(3, width, generator=generator)
    moments = Moments.zeros(w)
    for part in (slice(None, tokens // 2), slice(tokens // 2, None)):
        moments.add(x[part], y[part])
    moments = moments.mirrored()
    torch.testing.assert_close(moments.gram, x.T @ x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moments.cross, y.T @ x, atol=1e-4, rtol=1e-4)
    assert moments.tokens == tokens
    expected = ((x @ w.T - y).square().sum() / y.square().sum()).item()
    assert moments.error(w) == pytest.approx(expected, rel=1e-3)


def folds_of(x: torch.Tensor, y: torch.Tensor, parts: int) -> list[Moments]:
    found = [Moments.zeros(torch.empty(y.shape[1], x.shape[1])) for _ in range(parts)]
    for part, moments in enumerate(found):
        moments.add(x[part::parts], y[part::parts])
    return found


def test_a_weight_that_is_already_best_is_retained() -> None:
    torch.manual_seed(2)
    w, x = torch.randn(3, 5), torch.randn(30, 5)
    exact, ridge, before, after = choose_repair(folds_of(x, x @ w.T, 2), w)
    assert ridge is None
    assert before == after
    assert torch.equal(exact, w.double())


def test_the_chosen_ridge_is_the_best_on_held_out_text() -> None:
    torch.manual_seed(3)
    x, true = torch.randn(60, 20), torch.randn(4, 20)
    y, w = x @ true.T + 0.5 * torch.randn(60, 4), true + 0.3 * torch.randn(4, 20)
    folds = folds_of(x, y, 3)
    whole = [fold.mirrored().of_outputs(slice(None, None, 4)) for fold in folds_of(x, y, 3)]  # as they are compared
    errors = {}
    for ridge in RIDGES:
        errors[ridge] = sum(
            whole[i].error(
                solve_ridge(
                    sum((whole[j].gram for j in range(3) if j != i), start=torch.zeros(20, 20)),
                    sum((whole[j].cross for j in range(3) if j != i), start=torch.zeros(1, 20)),
                    w[::4],
                    ridge,
                )
            )
            for i in range(3)
        )
    solved, ridge, before, after = choose_repair(folds, w)
    assert ridge == min(errors, key=lambda key: errors[key])
    assert after == pytest.approx(min(errors.values()) / 3, rel=1e-3)
    assert after < before
    torch.testing.assert_close(solved, solve_ridge(x.T @ x, y.T @ x, w, ridge), atol=1e-3, rtol=1e-3)


def test_the_ridge_grows_where_there_are_fewer_tokens_than_inputs() -> None:
    assert least_ridge(100, 100) == RIDGES[0]
    assert least_ridge(100, 50) == pytest.approx(0.2)
    torch.manual_seed(4)
    x, w = torch.randn(8, 40), torch.randn(3, 40)
    y = x @ (w + 0.1 * torch.randn(3, 40)).T
    _, ridge, _, _ = choose_repair(folds_of(x, y, 2), w)
    assert ridge is None or ridge >= 0.5
    # So few that no ridge of the list is large enough: the largest is the only candidate.
    x, y = torch.randn(2, 400), torch.randn(2, 3)
    _, ridge, _, _ = choose_repair(folds_of(x, y, 2), torch.zeros(3, 400))
    assert ridge in (None, RIDGES[-1])


@given(st.integers(1, 12), st.integers(0, 11), st.floats(0, 20))
def test_walking_downhill_finds_the_bottom(count: int, bottom: int, start: float) -> None:
    values = list(range(count))
    asked: list[float] = []

    def cost(value: float) -> float:
        asked.append(value)
        return abs(value - min(bottom, count - 1))

    assert descend(values, cost, start) == (min(bottom, count - 1), 0)
    assert len(asked) == len(set(asked))
