"""What a plan says of the vocabulary: which rows stay, what goes, and what that costs in tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..errors import SourceError


@dataclass(frozen=True)
class TokensPerByte:
    """How many tokens a text takes before and after.

    Args:
        text: Name of the text.
        before: Tokens per byte of UTF-8 with the whole vocabulary.
        after: The same with the smaller one.
        bytes: Bytes that were counted.
    """

    text: str
    before: float
    after: float
    bytes: int


@dataclass(frozen=True)
class VocabularyRecord:
    """Which rows of the embedding stay, and how they were chosen.

    Args:
        kept: The rows that stay as `first-last` of each run, ascending and comma-separated: one entry in the file
            where a list would be a hundred thousand lines. A token's new id is its place among them.
        num_tokens: Tokens before; other rows had none.
        new_num_tokens: Tokens after.
        texts: Names of the texts whose tokens were counted.
        fingerprints: Fingerprints of the texts; None for a text that is not a file.
        languages: Languages whose words were counted.
        required: How many tokens had to stay, by the reason.
        removed_scripts: How many of the removed tokens are of each script; `no letters` for those without.
        removed_languages: Of the removed tokens that are words of a language: how many of each.
        lost: The removed tokens that are expected most often, as they are spelled, the most frequent first.
        tokens_per_byte: What the texts cost in tokens before and after.
        notes: What was left out of the tokenizer's files.
        llama_cpp_pre: What llama.cpp calls the base's pre-tokenizer, where its converter was asked.
    """

    kept: str
    num_tokens: int
    new_num_tokens: int
    texts: tuple[str, ...] = ()
    fingerprints: tuple[str | None, ...] = ()
    languages: tuple[str, ...] = ()
    required: Mapping[str, int] = field(default_factory=dict)
    removed_scripts: Mapping[str, int] = field(default_factory=dict)
    removed_languages: Mapping[str, int] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    tokens_per_byte: tuple[TokensPerByte, ...] = ()
    notes: tuple[str, ...] = ()
    llama_cpp_pre: str | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows that stay, ascending."""
        return parse_rows(self.kept)


def row_spans(rows: Iterable[int]) -> str:
    """Return ascending rows as `first-last` of each run, comma-separated, such as `0-255,300,302-409`.

    Args:
        rows: The rows.
    """
    spans: list[list[int]] = []
    for row in rows:
        if spans and row == spans[-1][1] + 1:
            spans[-1][1] = row
        else:
            spans.append([row, row])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)


def parse_rows(kept: str) -> tuple[int, ...]:
    """Return the rows that `row_spans` wrote.

    Args:
        kept: The runs.

    Raises:
        SourceError: They are not ascending runs of rows.
    """
    rows: list[int] = []
    for span in kept.split(","):
        run = re.fullmatch(r"(\d+)(?:-(\d+))?", span)
        first, last = (int(run[1]), int(run[2] or run[1])) if run else (1, 0)
        if last < first:
            raise SourceError(f"the plan's rows of the vocabulary hold {span[:40]!r}, which is no run of rows")
        rows += range(first, last + 1)
    if any(after <= before for before, after in pairwise(rows)):
        raise SourceError("the plan's rows of the vocabulary are not ascending; restore the plan")
    return tuple(rows)


def shares(counts: Mapping[str, int], most: int = 6) -> Sequence[tuple[str, float]]:
    """Return the largest parts of a count with their shares, the rest as `others`.

    Args:
        counts: How many of each kind.
        most: How many kinds are named.
    """
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    found = [(name, count / total) for name, count in ordered[:most]]
    rest = sum(count for _, count in ordered[most:])
    return [*found, ("others", rest / total)] if rest else found
