from __future__ import annotations

import time
from itertools import product
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.evaluation.self_spread import self_spread

VALUES = st.lists(st.floats(-1, 1), min_size=1, max_size=9)


def enumerated(values: list[float], quantile: float) -> float:
    """Return the spread by the medians of all equally likely draws."""
    signed = [sign * value for value in values for sign in (1, -1)]
    sizes = sorted(abs(median(drawn)) for drawn in product(signed, repeat=len(values)))
    return next(size for number, size in enumerate(sizes, 1) if number >= quantile * len(sizes))


def test_one_round() -> None:
    assert self_spread([-0.25]) == 0.25


def test_two_rounds() -> None:
    # 16 pairs of draws. Their mean is 2 in size twice, 1.5 four times, 1 twice, 0.5 four times and 0 four times.
    assert self_spread([1.0, 2.0], 1.0) == 2.0
    assert self_spread([1.0, 2.0], 14.5 / 16) == 2.0
    assert self_spread([1.0, 2.0], 14 / 16) == 1.5
    assert self_spread([1.0, 2.0], 10.5 / 16) == 1.5
    assert self_spread([1.0, 2.0], 10 / 16) == 1.0
    assert self_spread([1.0, 2.0], 8 / 16) == 0.5
    assert self_spread([1.0, 2.0], 4 / 16) == 0.0


def test_three_rounds() -> None:
    # Of 216 draws, 3 * 1 * 1 * 5 + 1 = 16 have a median of 3, and as many one of -3.
    assert self_spread([1.0, 2.0, 3.0], 1.0) == 3.0
    assert self_spread([1.0, 2.0, 3.0], 184.5 / 216) == 3.0
    assert self_spread([1.0, 2.0, 3.0], 183.5 / 216) == 2.0


@pytest.mark.parametrize(
    "values", [[0.3], [0.1, 0.4], [0.1, 0.2, 0.2], [0.0, 0.1, 0.7, 0.8], [0.3, 0.3, 0.0, 0.1, 0.2]]
)
@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.8, 0.95, 1.0])
def test_it_is_that_of_all_draws(values: list[float], quantile: float) -> None:
    assert self_spread(values, quantile) == pytest.approx(enumerated(values, quantile), abs=1e-15)


@pytest.mark.parametrize("n", [7, 8, 13, 16])
def test_it_is_that_of_many_random_draws(n: int) -> None:
    draw = np.random.default_rng(n)
    values = draw.standard_t(3, n) * 0.01
    drawn = draw.choice(values, (400_000, n)) * draw.choice([-1, 1], (400_000, n))
    sizes = np.abs(np.median(drawn, axis=1))
    spread = self_spread(values.tolist())
    assert (sizes < spread * (1 - 1e-9)).mean() < 0.95 + 0.002
    assert (sizes <= spread * (1 + 1e-9)).mean() > 0.95 - 0.002


@given(VALUES)
def test_neither_order_nor_signs_matter(values: list[float]) -> None:
    turned = [-value for value in values[::-1]]
    assert self_spread(turned) == self_spread(values) == self_spread([abs(value) for value in values]) >= 0


@given(VALUES, st.integers(-8, 8))
def test_it_scales(values: list[float], power: int) -> None:
    values = [round(value, 6) for value in values]
    assert self_spread([value * 2.0**power for value in values]) == self_spread(values) * 2.0**power


@given(VALUES, VALUES)
def test_larger_differences_have_no_smaller_spread(values: list[float], more: list[float]) -> None:
    larger = [abs(value) + abs(extra) for value, extra in zip(values, (more * 9)[: len(values)], strict=True)]
    assert self_spread(larger) >= self_spread(values)


@given(VALUES, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_larger_share_has_no_smaller_spread(values: list[float], one: float, other: float) -> None:
    assert self_spread(values, min(one, other)) <= self_spread(values, max(one, other)) <= max(map(abs, values))


def test_equal_differences_are_the_spread() -> None:
    assert self_spread([0.05] * 13) == self_spread([0.05, -0.05] * 7) == 0.05
    assert self_spread([0.0] * 8) == self_spread([-0.0]) == 0.0


@pytest.mark.parametrize("n", [63, 64, 401, 400])
def test_many_rounds_take_little_time(n: int) -> None:
    values = np.random.default_rng(0).standard_normal(n).tolist()
    start = time.process_time()
    spread = self_spread(values)
    assert time.process_time() - start < (0.1 if n < 100 else 3)
    assert spread < 1
