"""What a draft can gain, by arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.speculation.formula import (
    NO_ROUNDS,
    Policy,
    Rounds,
    StepCosts,
    best_policy,
    expected_speedup,
    expected_tokens,
    replay,
)

TEXT = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=30)


def test_expected_tokens_are_the_sum_over_how_many_are_accepted() -> None:
    for acceptance in (0.0, 0.3, 0.8, 1.0):
        for length in (1, 3, 7):
            sums = sum(acceptance**accepted for accepted in range(length + 1))
            assert expected_tokens(acceptance, length) == pytest.approx(sums)


def test_the_speedup_of_the_paper() -> None:
    # Table 1 of arXiv:2211.17192: alpha 0.8 and gamma 5 give 3.69 tokens; with a cost of 0.05 that is x2.95.
    assert expected_tokens(0.8, 5) == pytest.approx(3.69, abs=0.01)
    assert expected_speedup(0.8, 5, 0.05) == pytest.approx(2.95, abs=0.01)
    assert expected_speedup(0.0, 1, 0.2) == pytest.approx(1 / 1.2)
    assert expected_speedup(0.8, 5, 0.05, verification=2.0) < expected_speedup(0.8, 5, 0.05)


@given(TEXT, st.integers(1, 8), st.floats(0, 1))
def test_a_replay_writes_every_token_once(text: list[tuple[bool, float]], length: int, threshold: float) -> None:
    matches, sure = zip(*text, strict=True)
    found = replay(matches, sure, Policy(length, threshold))
    assert found.tokens == len(text) == found.accepted + found.passes
    assert found.accepted <= found.drafted <= found.passes * length


def test_a_replay_of_drafts_that_are_never_and_always_right() -> None:
    sure = [1.0] * 12
    assert replay([False] * 12, sure, Policy(3)) == Rounds(12, 12, 9 * 3 + 2 + 1, 0)
    assert replay([True] * 12, sure, Policy(3)) == Rounds(12, 3, 9, 9)
    assert replay([False] * 12, [0.1] * 12, Policy(3, 0.4)).drafted == 11  # unsure of the first, it stops there
    assert replay([True] * 12, [0.1] * 12, Policy(3, 0.4)) == Rounds(12, 6, 6, 6)


def test_passes_over_other_numbers_of_tokens_are_interpolated() -> None:
    costs = StepCosts(0.5, {1: 1.0, 3: 2.0, 5: 2.0})
    assert [costs.verification(count) for count in (1, 2, 3, 4, 5)] == [1.0, 1.5, 2.0, 2.0, 2.0]
    assert StepCosts(0.5, {1: 1.0}).verification(4) == 1.0


def test_the_best_policy_drafts_little_where_steps_cost_much() -> None:
    text = ([True, False] * 16, [0.9] * 32)
    assert best_policy([text], StepCosts(0.9, {1: 1.0}))[0] == Policy(1)
    assert best_policy([([True] * 32, [0.9] * 32)], StepCosts(0.01, {1: 1.0}))[0].length == 12
    unsure = ([True, True, True, False] * 8, [0.9, 0.9, 0.9, 0.1] * 8)
    costs = StepCosts(0.5, {1: 1.0})
    policy, rounds = best_policy([unsure], costs)
    assert policy == Policy(3)
    assert rounds == Rounds(32, 8, 24, 24)
    assert rounds.speedup(costs) == pytest.approx(32 / (8 + 0.5 * 24))
    assert NO_ROUNDS.acceptance == 0
