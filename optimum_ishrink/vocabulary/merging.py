"""What a tokenizer's merges make of many short texts at once.

The result is that of the tokenizers library: of all neighbours that a merge joins, those with the lowest rank are
joined first, from the left. Texts of one length are processed together, as the rows of one array.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tokenizer_file import Ints

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Merges:
    """A tokenizer's merges, to be looked up by their pairs.

    Args:
        keys: One number for each pair, ascending.
        ranks: The rank of each pair's merge.
        merged: The token that each merge makes, by rank.
        base: More than the largest token id.
    """

    keys: Ints
    ranks: Ints
    merged: Ints
    base: int

    @classmethod
    def of(cls, pairs: Ints, merged: Ints, base: int) -> Merges:
        """Prepare merges.

        Args:
            pairs: The two tokens of each merge, by rank, shape (merges, 2).
            merged: The token that each makes, shape (merges,).
            base: More than the largest token id.
        """
        keys = pairs[:, 0] * base + pairs[:, 1]
        # A pair that is listed twice has its later rank: the library fills a map with them in order.
        found, last = np.unique(keys[::-1], return_index=True)
        return cls(found, len(keys) - 1 - last, merged, base)

    def rank(self, left: Ints, right: Ints) -> Ints:
        """Return the rank of the merge of each pair; the largest integer where there is none."""
        if not len(self.keys):
            return np.full(left.shape, _NEVER)
        wanted = left * self.base + right
        at = np.searchsorted(self.keys, wanted)
        at[at == len(self.keys)] = 0
        return np.where(self.keys[at] == wanted, self.ranks[at], _NEVER)


def merge_down(symbols: Ints, merges: Merges) -> tuple[Ints, Ints]:
    """Apply merges to texts of one length until two symbols are left, or nothing can be merged.

    Args:
        symbols: The symbols of each text, shape (texts, length); length is 2 or more.
        merges: The merges.

    Returns:
        The last two symbols of each text, shape (texts, 2), which no merge need join, and how many symbols are left of
        each, shape (texts,). Where more than two are left, the pair is -1, -1.
    """
    pairs = np.full((len(symbols), 2), -1, dtype=np.int64)
    left_over = np.full(len(symbols), symbols.shape[1], dtype=np.int64)
    texts = np.arange(len(symbols))
    ranks = merges.rank(symbols[:, :-1], symbols[:, 1:])
    while symbols.shape[1] > 2 and len(texts):
        at = ranks.argmin(1)
        best = ranks[np.arange(len(texts)), at]
        if not (mergeable := best < _NEVER).all():
            symbols, ranks, texts, at, best = (x[mergeable] for x in (symbols, ranks, texts, at, best))
        row = np.arange(len(texts))
        length = symbols.shape[1]
        remaining = np.ones(symbols.shape, dtype=bool)
        remaining[row, at + 1] = False
        symbols[row, at] = merges.merged[best]
        symbols = symbols[remaining].reshape(len(row), length - 1)
        remaining = np.ones(ranks.shape, dtype=bool)
        remaining[row, at] = False
        ranks = ranks[remaining].reshape(len(row), length - 2)
        before, after = at > 0, at < length - 2
        ranks[row[before], at[before] - 1] = merges.rank(
            symbols[row[before], at[before] - 1], symbols[row[before], at[before]]
        )
        ranks[row[after], at[after]] = merges.rank(symbols[row[after], at[after]], symbols[row[after], at[after] + 1])
        left_over[texts] = length - 1
    if len(texts):
        pairs[texts] = symbols
    return pairs, left_over
