from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulated_timings import NOISE, simulate
from optimum_ishrink.evaluation.self_spread import self_spread
from optimum_ishrink.evaluation.timing import (
    FASTER,
    LEVEL,
    NO_DIFFERENCE,
    SLOWER,
    TOO_FEW,
    compare_timings,
    holm,
    median_interval,
    sign_test,
)

EVEN = [0.001, -0.001] * 6 + [0.0]


def test_the_sign_test_is_the_binomial_one() -> None:
    assert sign_test([1.0] * 10) == 2 / 2**10
    assert sign_test([-1.0] * 9 + [2.0]) == 2 * (1 + 10) / 2**10
    assert sign_test([1.0, -1.0]) == 1.0
    assert sign_test([0.0, 0.0]) == 1.0
    assert sign_test([0.0, 1.0, 1.0]) == 0.5


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_the_sign_test_is_symmetric(values: list[float]) -> None:
    assert sign_test(values) == sign_test([-value for value in values]) <= 1


@pytest.mark.parametrize(("n", "low", "high", "coverage"), [(5, 0, 4, 1 - 2 / 32), (13, 1, 11, 1 - 28 / 8192)])
def test_the_interval_of_the_median_is_between_two_rounds(n: int, low: int, high: int, coverage: float) -> None:
    values = [float(value) for value in range(n)]
    assert median_interval(values[::-1]) == (low, high, coverage)


def test_one_round_has_no_interval() -> None:
    assert median_interval([3.0]) == (3.0, 3.0, 0.0)


def test_the_interval_has_its_stated_coverage() -> None:
    generator = torch.Generator().manual_seed(0)
    runs = torch.randn(2000, 13, generator=generator).exp() - 1  # skewed, with the median at zero
    found = [median_interval(run.tolist()) for run in runs]
    assert sum(low <= 0 <= high for low, high, _ in found) / len(found) == pytest.approx(found[0][2], abs=0.005)


def test_the_interval_excludes_one_when_the_sign_test_finds_a_difference() -> None:
    for wrong in range(7):
        values = [0.1 + i / 100 for i in range(13 - wrong)] + [-0.1 - i / 100 for i in range(wrong)]
        low, _, coverage = median_interval(values)
        assert (low > 0) == (sign_test(values) <= 1 - coverage)


def test_a_spread_grows_with_the_noise_and_shrinks_with_the_rounds() -> None:
    many = torch.randn(13 * 16, generator=torch.Generator().manual_seed(0)).double()
    values = many[:13]
    small, large = self_spread((values * 0.01).tolist()), self_spread((values * 0.02).tolist())
    assert large == pytest.approx(2 * small)
    assert self_spread((many * 0.01).tolist()) < small / 2
    # The order of turns is arbitrary: a lasting difference of the two turns is spread, not shift.
    assert self_spread([0.05] * 13) == pytest.approx(0.05)
    assert self_spread([0.0] * 13) == 0


def test_holm_is_between_no_correction_and_bonferroni() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


def test_a_difference_has_to_be_found_and_to_be_large_enough() -> None:
    def verdict(ratios: list[float], own: list[float] = EVEN) -> str:
        return compare_timings([(ratios, own)])[0].verdict

    assert verdict([0.1] * 13) == FASTER
    assert verdict([-0.1] * 13) == SLOWER
    assert verdict([0.1] * 7 + [-0.1] * 6) == NO_DIFFERENCE
    assert verdict([0.015] * 13) == NO_DIFFERENCE  # every round agrees, but it is next to nothing
    assert verdict([0.1] * 13, own=[0.3, -0.3] * 6 + [0.2]) == NO_DIFFERENCE  # it differs as much from itself
    assert verdict([0.1] * 7) == TOO_FEW
    assert verdict([0.1] * 8) == FASTER


def test_more_timings_need_more_rounds() -> None:
    assert {each.verdict for each in compare_timings([([0.1] * 8, EVEN)] * 2)} == {TOO_FEW}
    one_wrong = [0.1] * 12 + [-0.1]
    assert compare_timings([(one_wrong, EVEN)])[0].verdict == FASTER
    assert compare_timings([(one_wrong, EVEN)] * 4)[0].adjusted_p_value > LEVEL
    assert {each.verdict for each in compare_timings([(one_wrong, EVEN)] * 4)} == {NO_DIFFERENCE}


def test_entries_of_a_comparison() -> None:
    ratios = [math.log(1 + i / 100) for i in range(4, 17)]
    found = compare_timings([(ratios, EVEN)])[0]
    assert found.ratio == pytest.approx(1.10)
    assert found.interval == pytest.approx((1.05, 1.15))
    assert found.round_ratios == pytest.approx([1 + i / 100 for i in range(4, 17)])
    assert found.spread < 0.0011
    turned = found.inverted
    assert turned.ratio == pytest.approx(1 / 1.10)
    assert turned.interval == pytest.approx((1 / 1.15, 1 / 1.05))
    assert (turned.verdict, turned.p_value) == (found.verdict, found.p_value)
    assert found.inverted.inverted.interval == pytest.approx(found.interval)


@pytest.mark.parametrize("name", NOISE)
def test_a_model_against_itself_shows_no_difference(name: str) -> None:
    found = simulate(NOISE[name], 0.0, runs=100, seed=1)
    right = sum(set(verdicts.values()) == {NO_DIFFERENCE} for verdicts in found)
    assert right >= 96, Counter(map(str, found))


@pytest.mark.parametrize(("name", "difference"), [("quiet", 0.07), ("shared", 0.07), ("busy", 0.10)])
def test_a_smaller_model_is_called_faster(name: str, difference: float) -> None:
    found = simulate(NOISE[name], difference, runs=60, seed=1)
    assert sum(verdicts["decode"] == FASTER for verdicts in found) >= 58
    slower = simulate(NOISE[name], 1 / (1 + difference) - 1, runs=60, seed=1)
    assert sum(verdicts["decode"] == SLOWER for verdicts in slower) >= 58
