"""The tables of a plan's vocabulary: in the terminal and, from the same rows, in the card."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.table import Row
from .vocabulary import VocabularyRecord, shares

TOKENS_HEADER: Row = ("text", "bytes", "tokens per byte before", "after", "change")

_NAMED = 24


def vocabulary_rows(record: VocabularyRecord) -> list[Row]:
    """Return (what, how much) of what goes and why the rest stays.

    Args:
        record: What the plan says of the vocabulary.
    """
    removed = record.num_tokens - record.new_num_tokens
    rows: list[Row] = [("tokens", f"{record.new_num_tokens:,} of {record.num_tokens:,} stay, {removed:,} go")]
    chosen = [*record.texts, *(f"word frequencies ({language})" for language in record.languages)]
    rows.append(("chosen by", ", ".join([*chosen, "the vocabulary's order"])))
    rows.append(("always stay", _counts(record.required)))
    if removed:
        rows.append(("scripts that go", _shares(record.removed_scripts)))
        if record.removed_languages:
            rows.append(("words that go, by language", _shares(record.removed_languages)))
        rows.append(("most frequent that go", " ".join(_spelled(token) for token in record.lost[:_NAMED])))
    return [*rows, *(("left out", line) for line in record.notes)]


VOCABULARY_HEADER: Row = ("vocabulary", "what stays and what goes")


def tokens_rows(record: VocabularyRecord) -> list[Row]:
    """Return (text, bytes, tokens per byte before, after, change) for every text that was counted.

    Args:
        record: What the plan says of the vocabulary.
    """
    rows: list[Row] = []
    for text in record.tokens_per_byte:
        change = f"{text.after / text.before - 1:+.2%}"
        rows.append((text.text, f"{text.bytes:,}", f"{text.before:.4f}", f"{text.after:.4f}", change))
    return rows


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def _shares(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares(counts) if share >= 0.005)


def _spelled(token: str) -> str:
    """Return a token with its spaces visible, as one word."""
    return token.replace(" ", "\u2423").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
