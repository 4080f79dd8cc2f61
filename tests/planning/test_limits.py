from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.errors import RequestError
from optimum_ishrink.planning.limits import METRICS, Limit, parse_families, parse_limits


def test_absolute_and_relative_limits() -> None:
    found = parse_limits("bytes=80MB, decode=+20%,ttft=200ms, memory=1.5GiB,params=-15%")
    assert [(limit.metric, limit.value, limit.change) for limit in found] == [
        ("bytes", 80e6, None),
        ("decode", None, 0.2),
        ("ttft", 0.2, None),
        ("memory", 1.5 * 2**30, None),
        ("params", None, -0.15),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("bytes=80500000", None),
        ("bytes=80500kB", 80.5e6),
        ("bytes=64MiB", 64 * 2**20),
        ("params=115M", 115e6),
        ("params=1.1b", 1.1e9),
        ("ttft=0.2s", 0.2),
        ("decode=30t/s", 30),
        ("decode=30", 30),
    ],
)
def test_units(text: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(RequestError, match="is not of the form bytes=80MB or bytes=-40%"):
            parse_limits(text)
    else:
        assert parse_limits(text)[0].value == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("80MB", "names no metric"),
        ("byte=80MB", "unknown metric 'byte' .did you mean 'bytes'"),
        ("bytes=80%", "has to ask for less"),
        ("bytes=-100%", "has to ask for less, and less than all of it"),
        ("decode=-20%", "has to ask for more"),
        ("ttft=0ms", "leaves nothing of the model"),
        ("bytes=1e400MB", "is no number that a computer holds"),
        ("memory=2 apples", "is not of the form memory=200MB"),
        ("bytes=80MB,bytes=-10%", "bytes is limited twice: bytes=80MB and bytes=-10%"),
        ("", "names no metric"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as error:
        parse_limits(text)
    assert "\n" not in str(error.value)


def test_a_limit_is_kept_from_the_right_side() -> None:
    faster, smaller = parse_limits("decode=+20%,bytes=-40%")
    assert faster.allows(12.0, 10.0) and not faster.allows(11.9, 10.0)
    assert smaller.allows(60.0, 100.0) and not smaller.allows(60.1, 100.0)
    assert Limit("bytes", 5.0, None, "bytes=5B").against(100.0) == 5.0


def test_families_are_separated_by_semicolons() -> None:
    assert [limits[0].change for limits in parse_families("params=-10%;params=-20%")] == [-0.1, -0.2]
    with pytest.raises(RequestError, match="the target params=-10% is given twice"):
        parse_families("params=-10%;params=-10%")


@given(st.text(max_size=40))
def test_any_text_is_limits_or_one_line(text: str) -> None:
    try:
        found = parse_limits(text)
    except RequestError as error:
        assert "\n" not in str(error) or "\n" in text
    else:
        assert all(limit.metric in METRICS for limit in found)
