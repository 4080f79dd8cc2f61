"""The reader of rows: every row is read for what it says, or refused in one line."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimum_ishrink.errors import DataError
from optimum_ishrink.text.rows import read_row, row_text
from optimum_ishrink.text.sources import TextSource
from tests.helpers.tiny import tiny_tokenizer
from tests.text.test_conversations import CHAT, REFUSING, THINKING, Chatting


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": None, "messages": [{"role": "user", "content": "hi"}]}, "user: hi"),
        ({"text": "", "prompt": "a", "completion": "b"}, "ab"),
        ({"messages": [], "question": "q", "choices": ["x"], "answer": 0}, "Question: q\nAnswer: x"),
        ({"text": None}, ""),
        ({"prompt": None, "completion": "b"}, "b"),
        ({"prompt": "a", "completion": None}, "a"),
        ({"text": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"messages": [{"role": "user", "content": None}]}, "user: "),
    ],
)
def test_null_is_nothing_and_parts_are_their_text(row: dict[str, Any], text: str) -> None:
    assert row_text(row) == text


def test_a_column_may_hold_text_or_a_conversation() -> None:
    row = {"a": [{"role": "user", "content": "hi"}], "b": None, "c": [{"type": "text", "text": "x"}], "d": 1}
    assert [row_text(row, name) for name in "abc"] == ["user: hi", "", "x"]
    with pytest.raises(DataError, match="has a number as 'd'"):
        row_text(row, "d")
    with pytest.raises(DataError, match="has no column 'e'"):
        row_text(row, "e")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 1}, "has a number as 'text'; write it as a string"),
        ({"text": ["two", "words"]}, "has a list as 'text' that holds a string; write one text"),
        ({"text": {"a": 1}}, "has an object as 'text'"),
        ({"text": b"x"}, "has a value of type bytes as 'text'"),
        ({"prompt": "a"}, "is not a row with 'text'; 'messages'"),
        ({"prompt": "a", "completion": 4}, "has a number as 'completion'"),
        ("text", "is not a row with"),
        (["text"], "is not a row with"),
        (None, "is not a row with"),
        ({}, "is not a row with"),
        ({"question": "q", "choices": "xy", "answer": 0}, "has 'choices' that are no list"),
        ({"question": "q", "choices": ["x", "y"], "answer": -1}, "has an 'answer' that is not .* from 0 to 1"),
        ({"question": "q", "choices": ["x", "y"], "answer": 2}, "has an 'answer' that is not the index"),
        ({"question": "q", "choices": ["x", "y"], "answer": True}, "has an 'answer' that is not the index"),
        ({"question": "q", "choices": ["x", "y"], "answer": "A"}, "has an 'answer' that is not the index"),
        ({"question": "q", "choices": [1, 2], "answer": 0}, "has a number as 'choices'"),
        ({"text": "\ud800"}, r"holds \\ud800, which is half of a surrogate pair"),
        ({"messages": [{"role": "user", "content": "a\udc00"}]}, r"holds \\udc00, which is half"),
    ],
)
def test_rows_that_cannot_be_read(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^the row {message}"):
        row_text(row)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text() | st.none()}), max_size=3)
CONTENT = st.text() | st.none() | PARTS | VALUES
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": CONTENT},
        optional={"tool_calls": st.none() | VALUES | st.just([{"function": {"name": "f", "arguments": "{}"}}])},
    ),
    max_size=4,
)
ROWS = VALUES | st.fixed_dictionaries(
    {},
    optional={
        "text": CONTENT,
        "messages": MESSAGES | VALUES,
        "prompt": MESSAGES | CONTENT,
        "completion": MESSAGES | CONTENT,
        "question": CONTENT,
        "choices": st.lists(CONTENT, max_size=3) | VALUES,
        "answer": st.integers(-2, 3) | VALUES,
        "tools": VALUES,
        "chat_template_kwargs": VALUES,
    },
)


@given(row=ROWS, answers=st.booleans(), template=st.sampled_from([None, CHAT, THINKING, REFUSING]))
def test_every_row_is_read_or_refused_in_one_line(row: Any, answers: bool, template: str | None) -> None:
    """Never a traceback; what is read can be tokenised."""
    for read in (
        lambda: [row_text(row)],
        lambda: [text for text, _ in read_row(row).segments(Chatting(template), answers=answers)],
    ):
        try:
            texts = read()
        except DataError as error:
            assert re.match("the row (has|is|holds) ", str(error))
            assert "\n" not in str(error)
        else:
            tiny_tokenizer()(["", *texts], add_special_tokens=False)


WORD = st.text(string.ascii_lowercase, min_size=1, max_size=4)
NO_TEXT = st.booleans() | st.integers() | st.floats() | st.dictionaries(WORD, WORD, max_size=2)
NO_TEXT |= st.lists(WORD | st.integers(), min_size=1, max_size=2)


@given(value=NO_TEXT | st.none())
def test_the_python_spelling_of_a_value_is_never_text(value: Any) -> None:
    talk = [{"role": "user", "content": value}, {"role": "assistant", "content": "x"}]
    for row, wanted in (
        ({"text": value}, ""),
        ({"prompt": value, "completion": "x"}, "x"),
        ({"prompt": "x", "completion": value}, "x"),
        ({"messages": talk}, "user: \nassistant: x"),
        ({"prompt": talk[:1], "completion": talk[1:]}, "user: \nassistant: x"),
    ):
        if value is None:
            assert row_text(row) == wanted
        else:
            with pytest.raises(DataError, match="^the row has "):
                row_text(row)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, min_size=1, max_size=4), number=st.integers(0, 3))
def test_a_refused_row_of_a_file_is_named(tmp_path: Path, rows: list[Any], number: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    for read in (
        lambda: list(TextSource(str(path)).documents()),
        lambda: [row.segments(Chatting(CHAT), answers=True) for row in TextSource(str(path)).rows()],
    ):
        try:
            read()
        except DataError as error:
            found = re.match(rf"{re.escape(str(path))} line (\d+) |text file .* is empty", str(error))
            assert found, error
            if found[1]:
                at = (int(found[1]) - 1) // 2
                with pytest.raises(DataError):
                    row = read_row(json.loads(json.dumps(rows[at])))
                    row.text()
                    row.segments(Chatting(CHAT), answers=True)
