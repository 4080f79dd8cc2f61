"""Which two tokens each token is made of: what must stay with it, and what its text becomes without it.

A tokenizer's merges, applied to a token's own string, end by joining two tokens, `left` and `right`, which were made
in the same way. In any text in which the token comes out, the same merges are applied within its string: none of them
ever reached across its ends, so the next one within it was always the one with the lowest rank there. Hence text whose
tokens all stay, with their parts and the parts' parts, is tokenised as before, whatever else goes. For the same reason
a token that has several merges is only ever made by one of them, in any text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..text.token_map import is_byte
from .merging import Merges, merge_down
from .tokenizer_file import BYTE_FALLBACK, UNIGRAM, Ints, TokenizerFile

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Splits:
    """The two parts of every token of a vocabulary; each array has one entry per id, int64.

    Args:
        left: The first part; -1 for a token that has none: a single character, or one that is not made of others.
        right: The second part; -1 likewise.
        sizes: How many symbols (characters, or bytes) a token's string begins as. Parts have fewer than the whole.
        pieces_of_leaves: Tokens that the string of a token without parts becomes if it is removed.
        reachable: Whether the tokenizer makes this token of its own string. One that it does not make comes out of no
            text, unless as a whole word where merges are ignored for these, or as an added token.
        needs_parts: Whether a token is lost with its parts. Not so in Unigram, where the parts are an estimate.
    """

    left: Ints
    right: Ints
    sizes: Ints
    pieces_of_leaves: Ints
    reachable: Mask
    needs_parts: bool

    @cached_property
    def levels(self) -> tuple[Ints, ...]:
        """The ids of the tokens that have parts, grouped by size, ascending: parts come before what they make."""
        whole = np.flatnonzero(self.left >= 0)
        whole = whole[np.argsort(self.sizes[whole], kind="stable")]
        return tuple(np.split(whole, np.flatnonzero(np.diff(self.sizes[whole])) + 1)) if len(whole) else ()

    def close(self, ids: Iterable[int]) -> Ints:
        """Return tokens with all that they need to come out of a text, ascending.

        Args:
            ids: The tokens. Ids after those of the tokenizer's file stand for themselves.
        """
        asked = np.fromiter(ids, dtype=np.int64)
        needed = np.zeros(max(len(self.left), asked.max(initial=-1) + 1), dtype=bool)
        needed[asked] = True
        for level in reversed(self.levels) if self.needs_parts else ():
            held = level[needed[level]]
            needed[self.left[held]] = True
            needed[self.right[held]] = True
        return np.flatnonzero(needed)

    def parts(self, token: int) -> frozenset[int]:
        """Return the tokens that a token needs to come out of a text, without itself."""
        found: set[int] = set()
        waiting = [token]
        while waiting and self.needs_parts:
            token = waiting.pop()
            if self.left[token] >= 0:
                both = {int(self.left[token]), int(self.right[token])} - found
                found |= both
                waiting += both
        return frozenset(found)

    def pieces(self, kept: Mask) -> Ints:
        """Return how many tokens the string of each token becomes where some are removed.

        The pieces of a removed token are taken to be those of its parts. The tokenizer itself may find fewer.

        Args:
            kept: Which tokens stay, bool, shape (ids,).

        Returns:
            1 for each token that stays, shape (ids,).
        """
        counts = np.where(kept, 1, self.pieces_of_leaves)
        for level in self.levels:
            gone = level[~kept[level]]
            counts[gone] = counts[self.left[gone]] + counts[self.right[gone]]
        return counts

    def split(self, token: int, kept: Mask) -> list[int]:
        """Return the tokens that a token's string becomes, by its parts; a removed one without parts as itself.

        Args:
            token: The token's id.
            kept: Which tokens stay, bool, shape (ids,).
        """
        found: list[int] = []
        waiting = [token]
        while waiting:
            token = waiting.pop()
            if kept[token] or self.left[token] < 0:
                found.append(token)
            else:
                waiting += (int(self.right[token]), int(self.left[token]))
        return found


def find_splits(tokenizer: TokenizerFile) -> Splits:
    """Find the parts of every token of a vocabulary.

    Args:
        tokenizer: The tokenizer.
    """
    return _unigram_splits(tokenizer) if tokenizer.kind == UNIGRAM else _merge_splits(tokenizer)


def _merge_splits(tokenizer: TokenizerFile) -> Splits:
    """Find parts by applying the merges to every token's string."""
    count = len(tokenizer.tokens)
    merges = Merges.of(tokenizer.merges, tokenizer.merged, count)
    groups: dict[int, tuple[list[int], list[list[int]]]] = defaultdict(lambda: ([], []))
    symbols = _Symbols(tokenizer)
    left, right = np.full(count, -1, dtype=np.int64), np.full(count, -1, dtype=np.int64)
    sizes, pieces = np.ones(count, dtype=np.int64), np.ones(count, dtype=np.int64)
    reachable = np.zeros(count, dtype=bool)
    for token, number in tokenizer.vocabulary.items():
        begun = symbols.of(token)
        if tokenizer.kind == BYTE_FALLBACK and is_byte(token):
            reachable[number] = True
        elif len(begun) == 1:
            reachable[number] = begun[0] == number
            pieces[number] = symbols.without(token)
        elif begun:
            ids, texts = groups[len(begun)]
            ids.append(number)
            texts.append(begun)
    for size, (ids, texts) in groups.items():
        numbers = np.array(ids)
        pairs, remaining = merge_down(np.array(texts, dtype=np.int64), merges)
        sizes[numbers] = size
        pieces[numbers] = remaining
        ranks = merges.rank(pairs[:, 0], pairs[:, 1])
        made = ranks < len(merges.merged)
        made[made] = merges.merged[ranks[made]] == numbers[made]
        reachable[numbers] = made
        left[numbers[made]], right[numbers[made]] = pairs[made].T
    return Splits(left, right, sizes, pieces, reachable, needs_parts=True)


class _Symbols:
    """The symbols that a BPE model begins with: a token for each character, or for each of its bytes."""

    def __init__(self, tokenizer: TokenizerFile) -> None:
        self._vocabulary = tokenizer.vocabulary
        self._fallback = tokenizer.kind == BYTE_FALLBACK
        self._known: dict[str, Sequence[int]] = {}

    def of(self, text: str) -> list[int]:
        """Return the symbols of a text; none where it has a character that cannot be written."""
        found: list[int] = []
        for character in text:
            symbols = self._known.get(character)
            if symbols is None:
                symbols = self._known[character] = self._look_up(character)
            if not symbols:
                return []
            found += symbols
        return found

    def without(self, character: str) -> int:
        """Return how many tokens a character becomes without a token of its own."""
        return len(character.encode("utf-8", "surrogatepass")) if self._fallback else 1

    def _look_up(self, character: str) -> Sequence[int]:
        if (own := self._vocabulary.get(character)) is not None:
            return [own]
        if not self._fallback:
            return []
        names = [f"<0x{byte:02X}>" for byte in character.encode("utf-8", "surrogatepass")]
        return [self._vocabulary[name] for name in names] if all(name in self._vocabulary for name in names) else []


def _unigram_splits(tokenizer: TokenizerFile) -> Splits:
    """Find for every token the two likeliest tokens that its string is made of: an estimate of what it becomes."""
    count = len(tokenizer.tokens)
    left, right = np.full(count, -1, dtype=np.int64), np.full(count, -1, dtype=np.int64)
    sizes, pieces = np.ones(count, dtype=np.int64), np.ones(count, dtype=np.int64)
    reachable = np.zeros(count, dtype=bool)
    scores, numbers = tokenizer.scores.tolist(), tokenizer.vocabulary
    unknown = min(scores, default=0.0) - 10.0  # what the library counts for a character without a token
    for token, number in numbers.items():
        sizes[number] = len(token)
        reachable[number] = True
        best = -np.inf
        for cut in range(1, len(token)):
            first = numbers.get(token[:cut])
            second = numbers.get(token[cut:]) if first is not None else None
            if second is not None and first is not None and (score := scores[first] + scores[second]) > best:
                best, left[number], right[number] = score, first, second
        if left[number] < 0:
            pieces[number] = _likeliest_pieces(token, tokenizer, scores, unknown)
    return Splits(left, right, sizes, pieces, reachable, needs_parts=False)


def _likeliest_pieces(token: str, tokenizer: TokenizerFile, scores: Sequence[float], unknown: float) -> int:
    """Return how many tokens the likeliest split of a Unigram token's string has, without the token itself."""
    best = [(0.0, 0)] + [(-np.inf, 0)] * len(token)
    for end in range(1, len(token) + 1):
        for start in range(end):
            number = tokenizer.vocabulary.get(token[start:end]) if end - start < len(token) else None
            score, count = best[start]
            if number is not None:
                best[end] = max(best[end], (score + scores[number], count + 1))
            elif end - start == 1:
                size = len(token[start].encode("utf-8", "surrogatepass")) if tokenizer.has_byte_fallback else 1
                best[end] = max(best[end], (score + unknown, count + size))
    return best[-1][1]
