"""Text files: what their bytes may be, and how a line that cannot be read is named."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimum_ishrink.errors import DataError
from optimum_ishrink.recovery.training_text import source_documents
from optimum_ishrink.text.sources import TextSource
from tests.helpers.tiny import tiny_tokenizer


def documents(path: Path) -> list[str]:
    return list(TextSource(str(path)).documents())


def trained_on(path: Path) -> list[str]:
    return ["".join(text for text, _ in each) for each in source_documents(TextSource(str(path)), None, "text")]


@pytest.mark.parametrize("read", [documents, trained_on])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_and_the_ends_of_lines_are_no_text(
    tmp_path: Path, end: str, read: Callable[[Path], list[str]]
) -> None:
    lines = ["Zürich", "two"]
    for mark in (b"", codecs.BOM_UTF8):
        (tmp_path / "a.txt").write_bytes(mark + end.join(lines).encode())
        assert read(tmp_path / "a.txt") == ["Zürich\ntwo"]
        rows = [json.dumps({"text": line}, ensure_ascii=False) for line in lines]
        (tmp_path / "a.jsonl").write_bytes(mark + end.join(rows).encode())
        assert read(tmp_path / "a.jsonl") == lines
    joined = b"\n".join(codecs.BOM_UTF8 + row.encode() for row in rows)
    (tmp_path / "joined.jsonl").write_bytes(joined)
    assert read(tmp_path / "joined.jsonl") == lines


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_another_encoding_is_refused_by_its_line(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes('{"text": "Zürich"}\n'.encode(encoding))
    with pytest.raises(DataError, match=rf"^text file .*{name} is not UTF-8 \(line 1.*\); save it as UTF-8$"):
        documents(tmp_path / name)
    (tmp_path / name).write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"is not UTF-8 \(line 2\); save it"):
        documents(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON; write one row a line"),
        ("[" * 200_000, "line 2 is nested too deep to be read"),
        ('{"text": ' + "9" * 5000 + "}", "line 2 is not JSON"),
        ('{"text": NaN}', "line 2 has a number as 'text'"),
        ('{"text": "\\ud83d"}', r"line 2 holds \\ud83d, which is half of a surrogate pair"),
        ("5", "line 2 is not a row with 'text'"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d\\ude00"}\n' + line)
    with pytest.raises(DataError, match=f"a.jsonl {message}"):
        documents(tmp_path / "a.jsonl")


def test_a_huge_line_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 50_000 + "\nend")
    assert [len(text) for text in documents(tmp_path / "a.txt")] == [249_999, 3]
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "word " * 50_000}))
    assert [len(text) for text in documents(tmp_path / "a.jsonl")] == [250_000]


def test_blocks_are_of_whole_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join("x" * (i % 97) + "\n" for i in range(5000)))

    def by_size() -> Iterator[str]:
        with (tmp_path / "a.txt").open(encoding="utf-8") as file:
            while lines := file.readlines(32_768):
                yield "".join(lines).strip()

    assert documents(tmp_path / "a.txt") == list(by_size())


def test_rows_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8)
    with pytest.raises(DataError, match=r"a\.jsonl is empty; name one that holds text"):
        TextSource(str(tmp_path / "a.jsonl")).rows()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_every_file_is_read_or_refused_in_one_line(tmp_path: Path, name: str, contents: bytes) -> None:
    (tmp_path / name).write_bytes(contents)
    for read in (documents, trained_on):
        try:
            texts = read(tmp_path / name)
        except DataError as error:
            assert name in str(error)
            assert "\n" not in str(error)
        else:
            tiny_tokenizer()(["", *texts], add_special_tokens=False)


def test_a_table_fills_objects_with_nulls(monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    talk = [{"role": "user", "content": None, "tool_calls": None}, {"role": "a", "content": "", "tool_calls": [call]}]
    rows: list[Any] = [{"messages": talk, "text": None}, {"messages": 5}]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    texts = TextSource("org/name").documents()
    assert next(texts) == 'user: \na: {"name": "f", "arguments": {"x": 1}}'
    with pytest.raises(DataError, match="^data set org/name row 2 has a number as 'messages'"):
        next(texts)
