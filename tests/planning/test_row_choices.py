"""The sizes that a vocabulary can have."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.errors import ShapeError
from optimum_ishrink.planning.row_choices import RowChoices

CHOICES = RowChoices(1000, 970, 64, [i / 100 for i in range(601)], {"bytes": 256, "digits": 10})


def test_the_least_and_what_is_free() -> None:
    assert CHOICES.least == 384  # 370 tokens, in multiples of 64
    assert CHOICES.free == 1000  # 970 tokens need 1,024 rows in multiples of 64: more than there are
    assert RowChoices(1100, 970, 64, [0.0]).free == RowChoices(1100, 970, 64, [0.0]).least == 1024


def test_what_a_size_costs() -> None:
    assert CHOICES.extra(1000) == CHOICES.extra(970) == 0
    assert CHOICES.extra(960) == 0.1 and CHOICES.extra(384) == 5.86


@given(st.floats(-1e6, 1e6), st.integers(1, 1100), st.integers(0, 900), st.integers(1, 300))
def test_the_nearest_sizes_can_be_had(size: float, tokens: int, removable: int, multiple: int) -> None:
    choices = RowChoices(1100, tokens, multiple, [0.0] * (1 + min(removable, tokens - 1)))
    below, above = choices.around(size)
    possible = [*range(choices.least, 1100), 1100]
    possible = [each for each in possible if each == 1100 or each == choices.least or each % multiple == 0]
    assert below == max((each for each in possible if each <= size), default=choices.least)
    assert above == min((each for each in possible if each >= size), default=1100)
    for each in (below, above, choices.free, choices.least):
        choices.check(each)


def test_the_models_own_size_is_allowed() -> None:
    CHOICES.check(1000)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (320, "vocab_size=320 is fewer than the 384 rows that have to stay: 256 bytes, 10 digits; use 384 or more"),
        (1, "vocab_size=1 is fewer than the 384 rows"),
        (500, "vocab_size=500 is not a multiple of 64, which kernels and tensor parallelism need; use 448 or 512, "),
        (990, "vocab_size=990 is not a multiple of 64, which kernels and tensor parallelism need; use 960, or set "),
    ],
)
def test_sizes_that_cannot_be_had(size: int, message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(message)):
        CHOICES.check(size)
