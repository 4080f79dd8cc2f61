"""The tables of a plan's vocabulary."""

from __future__ import annotations

from optimum_ishrink.report.vocabulary import TokensPerByte, VocabularyRecord
from optimum_ishrink.report.vocabulary_tables import TOKENS_HEADER, tokens_rows, vocabulary_rows

RECORD = VocabularyRecord(
    "0-1499",
    3000,
    1500,
    texts=("self",),
    fingerprints=(None,),
    languages=("en", "de"),
    required={"bytes": 256, "digits": 10},
    removed_scripts={"Cyrillic": 1200, "Latin": 299, "no letters": 1},
    removed_languages={"ru": 900},
    lost=(" und", "a\tb\n\r"),
    tokens_per_byte=(TokensPerByte("self", 0.25, 0.26, 1234),),
    notes=("tokenizer.model is left out: it is not a sentencepiece model",),
)


def test_what_goes_and_why_the_rest_stays() -> None:
    assert vocabulary_rows(RECORD) == [
        ("tokens", "1,500 of 3,000 stay, 1,500 go"),
        ("chosen by", "self, word frequencies (en), word frequencies (de), the vocabulary's order"),
        ("always stay", "256 bytes, 10 digits"),
        ("scripts that go", "Cyrillic 80%, Latin 20%"),
        ("words that go, by language", "ru 100%"),
        ("most frequent that go", "␣und a\\tb\\n\\r"),
        ("left out", "tokenizer.model is left out: it is not a sentencepiece model"),
    ]


def test_without_a_removed_token_nothing_is_said_of_any() -> None:
    rows = dict(vocabulary_rows(VocabularyRecord("0-9", 10, 10, required={"bytes": 10})))
    assert rows == {"tokens": "10 of 10 stay, 0 go", "chosen by": "the vocabulary's order", "always stay": "10 bytes"}
    removed = VocabularyRecord("0-8", 10, 9, removed_scripts={"no letters": 1}, lost=("x",))
    assert [row[0] for row in vocabulary_rows(removed)][3:] == ["scripts that go", "most frequent that go"]


def test_tokens_per_byte() -> None:
    assert tokens_rows(RECORD) == [("self", "1,234", "0.2500", "0.2600", "+4.00%")]
    assert len(TOKENS_HEADER) == 5
