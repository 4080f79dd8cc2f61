"""The order in which tokens go: always the one whose pieces cost least at the time."""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .splits import Mask, Splits
from .tokenizer_file import Ints

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RemovalOrder:
    """Which tokens go first, and what it costs.

    Args:
        order: Tokens in the order of their removal, int64, shape (removable,).
        extra: Expected additional tokens per token of text after each removal, float64, shape (removable + 1,); the
            first is 0.
        tokens: Which rows of the embedding have a token, bool, shape (rows,).
    """

    order: Ints
    extra: Floats
    tokens: Mask

    @property
    def num_tokens(self) -> int:
        """Rows that have a token."""
        return int(self.tokens.sum())

    def rows(self, size: int) -> tuple[int, ...]:
        """Return the rows that stay, ascending. Rows without a token go first; the last of them stay longest.

        Args:
            size: How many stay.
        """
        stays = self.tokens.copy()
        missing = size - self.num_tokens
        if missing < 0:
            stays[self.order[:-missing]] = False
        elif missing:
            stays[np.flatnonzero(~self.tokens)[-missing:]] = True
        rows = tuple(np.flatnonzero(stays).tolist())
        assert len(rows) == size, "sizes are checked before"
        return rows


def removable(splits: Splits, required: Collection[int], tokens: Mask) -> Mask:
    """Return which tokens can be removed: something else writes their text, and nothing needs them.

    Args:
        splits: The parts of each token.
        required: Tokens that stay.
        tokens: Which rows have a token, bool, shape (rows,).

    Returns:
        Bool, shape (ids,).
    """
    found: Mask = tokens[: len(splits.left)] & ((splits.left >= 0) | (splits.pieces_of_leaves > 1) | ~splits.reachable)
    found[[token for token in required if token < len(found)]] = False
    return found


def order_removals(counts: Floats, splits: Splits, required: Collection[int], tokens: Mask) -> RemovalOrder:
    """Return the order in which tokens are removed.

    A token can go once no token that stays is merged from it. Each of its occurrences becomes its two parts, so that
    removing it costs as many tokens as it has occurrences; these then count for its parts, which become dearer. At
    each step the cheapest token goes.

    Args:
        counts: Expected occurrences of each token, as the whole vocabulary splits a text, shape (rows,).
        splits: The parts of each token.
        required: Tokens that stay. Their parts have to be among them.
        tokens: Which rows have a token, bool, shape (rows,).
    """
    count = counts.astype(np.float64)
    count /= max(count.sum(), np.finfo(np.float64).tiny)
    left, right = splits.left.tolist(), splits.right.tolist()
    more = np.where(splits.left >= 0, 1, splits.pieces_of_leaves - 1).tolist()
    uses = np.bincount(np.concatenate([splits.left, splits.right]) + 1, minlength=len(left) + 1)[1:].tolist()
    free = removable(splits, required, tokens).tolist()
    values = count.tolist()

    # Of equally cheap tokens the later one goes first: vocabularies are ordered by frequency.
    heap = [(values[token] * more[token], -token) for token in range(len(left)) if free[token] and not uses[token]]
    heapq.heapify(heap)
    order, extra = [], [0.0]
    while heap:
        cost, negative = heapq.heappop(heap)
        token = -negative
        now = values[token] * more[token]
        if now > cost:  # its count has grown since it was pushed
            heapq.heappush(heap, (now, negative))
            continue
        order.append(token)
        extra.append(extra[-1] + now)
        for part in (left[token], right[token]) if left[token] >= 0 else ():
            values[part] += values[token]
            uses[part] -= 1
            if free[part] and not uses[part]:
                heapq.heappush(heap, (values[part] * more[part], -part))
    return RemovalOrder(np.array(order, dtype=np.int64), np.array(extra), tokens)
