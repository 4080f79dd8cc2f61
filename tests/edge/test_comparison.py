from __future__ import annotations

import random

import pytest

from optimum_ishrink.edge.comparison import CONFIDENCE, compare_rounds


def test_a_clear_difference_is_called_one() -> None:
    base, shrunk = [10.0, 11, 10, 12, 10, 11, 10, 10], [8.0, 9, 8, 9, 8, 9, 8, 8]
    found = compare_rounds(base, shrunk)
    assert found.low <= found.ratio <= found.high < 1
    assert found.confidence == pytest.approx(1 - 2 / 2**8)
    assert found.verdict(lower_is_better=True) == "better"
    assert found.verdict(lower_is_better=False) == "worse"
    assert compare_rounds(shrunk, base).verdict(lower_is_better=True) == "worse"


def test_a_model_against_itself_is_no_difference() -> None:
    draw = random.Random(0)
    wrong = 0
    for _ in range(500):
        base, again = ([draw.lognormvariate(0, 0.05) for _ in range(10)] for _ in range(2))
        wrong += compare_rounds(base, again).verdict(lower_is_better=True) != "no difference"
    assert wrong <= 500 * (1 - CONFIDENCE) * 2
    assert compare_rounds([5.0, 5], [5.0, 5]).verdict(lower_is_better=True) == "no difference"


def test_few_rounds_do_not_tell() -> None:
    assert compare_rounds([1.0, 1, 1], [0.5, 0.5, 0.4]).verdict(lower_is_better=True) == "too few rounds to tell"


def test_many_rounds_leave_out_the_outermost() -> None:
    shrunk = [0.9 + i / 1000 for i in range(30)]
    found = compare_rounds([1.0] * 30, shrunk)
    assert found.low > min(shrunk)
    assert found.high < max(shrunk)
    assert found.confidence >= CONFIDENCE
