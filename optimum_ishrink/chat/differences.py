"""What differs between two answers, word by word."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["same", "removed", "added"]


@dataclass(frozen=True)
class Differences:
    """Two texts as one, with what only one of them has marked.

    Args:
        parts: Runs of words with their kind: `removed` is in the first text alone, `added` in the second alone.
        common: Words that both have, in the same order.
        words: Words of the longer text.
    """

    parts: tuple[tuple[Kind, str], ...]
    common: int
    words: int

    @property
    def same(self) -> bool:
        """Whether the two say the same, word for word."""
        return all(kind == "same" for kind, _ in self.parts)


def compare_words(before: str, after: str) -> Differences:
    """Compare two texts word by word. White space counts only where it breaks a line.

    Args:
        before: The first text.
        after: The second text.
    """
    old, new = (re.findall(r"\n+|\S+", text.strip()) for text in (before, after))
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    parts: list[tuple[Kind, str]] = []
    common = 0
    for what, first, last, start, stop in matcher.get_opcodes():
        if what == "equal":
            parts.append(("same", _joined(old[first:last])))
            common += _count(old[first:last])
            continue
        for kind, words in (("removed", old[first:last]), ("added", new[start:stop])):
            if words:
                parts.append((kind, _joined(words)))  # type: ignore[arg-type]
    return Differences(tuple(parts), common, max(_count(old), _count(new)))


def _joined(words: list[str]) -> str:
    return re.sub(r" ?(\n+) ?", r"\1", " ".join(words))


def _count(words: list[str]) -> int:
    return sum(not word.isspace() for word in words)
