"""What a plan says of the vocabulary."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.core.json_codec import from_plain, to_plain
from optimum_ishrink.errors import SourceError
from optimum_ishrink.report.vocabulary import TokensPerByte, VocabularyRecord, parse_rows, row_spans, shares

ROWS = st.sets(st.integers(0, 400), min_size=1).map(sorted)


@given(ROWS)
def test_rows_survive_as_runs(rows: list[int]) -> None:
    kept = row_spans(rows)
    assert parse_rows(kept) == tuple(rows)
    assert VocabularyRecord(kept, 1, 1).rows == tuple(rows)
    runs = 1 + sum(after - before > 1 for before, after in pairwise(rows))
    assert kept.count(",") + 1 == runs


def test_runs_are_written_in_short() -> None:
    assert row_spans([0, 1, 2, 300, 302, 303]) == "0-2,300,302-303"


@pytest.mark.parametrize("kept", ["", "a", "1-b", "1,,2", "1-2-3", "0-255,x", "-3", "4-", "5-3"])
def test_what_are_no_runs(kept: str) -> None:
    span = next(part for part in kept.split(",") if part in ("5-3", "4-") or not re.fullmatch(r"\d+(-\d+)?", part))
    message = f"the plan's rows of the vocabulary hold {span!r}, which is no run of rows"
    with pytest.raises(SourceError, match=re.escape(message)):
        parse_rows(kept)


@pytest.mark.parametrize("kept", ["1,1", "2,1", "0-5,3-9", "0-5,5"])
def test_runs_that_do_not_ascend(kept: str) -> None:
    with pytest.raises(SourceError, match="the plan's rows of the vocabulary are not ascending; restore the plan"):
        parse_rows(kept)


def test_a_record_survives_json() -> None:
    record = VocabularyRecord(
        "0-3,7",
        8,
        5,
        texts=("self", "a.txt"),
        fingerprints=(None, "ab"),
        languages=("en",),
        required={"bytes": 2},
        removed_scripts={"Latin": 2, "no letters": 1},
        removed_languages={"de": 1},
        lost=(" und",),
        tokens_per_byte=(TokensPerByte("a.txt", 0.25, 0.3, 40),),
        notes=("vocab.json is left out",),
        llama_cpp_pre="smollm",
    )
    assert from_plain(VocabularyRecord, to_plain(record), kind="record") == record


def test_the_largest_parts_are_named() -> None:
    assert shares({}) == []
    assert shares({"b": 1, "a": 1}) == [("a", 0.5), ("b", 0.5)]
    assert shares({"a": 2, "b": 1, "c": 1}, most=1) == [("a", 0.5), ("others", 0.5)]
