"""What a library's error says, quoted in a message of one line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.errors import one_line


def test_a_short_text_is_whole_and_a_missing_one_is_the_class() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(KeyError()) == "KeyError"


def test_a_long_text_ends_at_a_word() -> None:
    words = ["seven77"] * 40
    quoted = one_line(ValueError(" ".join(words)), 100)
    assert quoted.split() == [*words[:12], "..."]
    assert one_line(ValueError("x" * 300), 100) == "x" * 96 + " ..."


@given(st.text(max_size=400), st.integers(20, 200))
def test_it_is_one_line_of_at_most_the_limit_and_begins_as_the_text(text: str, limit: int) -> None:
    quoted = one_line(ValueError(text), limit)
    assert len(quoted.splitlines()) == 1
    assert len(quoted) <= max(limit, len("ValueError"))
    words = " ".join(text.split())
    assert quoted in (words, "ValueError") or words.startswith(quoted.removesuffix(" ..."))
