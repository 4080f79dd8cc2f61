"""Windows of a text for a base and a model with fewer tokens: the same bytes, each in its own tokens.

Documents are tokenised whole by both, so that neither splits a word where a window happens to end. A window begins and
ends where both have a boundary between tokens; so does its context.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DataError
from ..text.token_map import TokenMap
from ..text.windows import beginning, in_order, token_stream, window_starts
from .passages import token_texts


@dataclass(frozen=True)
class SharedWindow:
    """One window of text, for a base and a model with fewer tokens.

    Args:
        base_ids: The base's tokens, int64, shape (base length,).
        base_context: How many of them are read and not predicted, at the start.
        ids: The model's tokens, int64, shape (length,).
        context: How many of them are read and not predicted; they are the same text.
        base_at: Positions in the base's tokens after which both models have read the same text and predict what
            follows, int64, shape (shared,), ascending. The first ends the context.
        at: The same positions in the model's tokens.
        bytes: Bytes of the predicted text in UTF-8.
    """

    base_ids: torch.Tensor
    base_context: int
    ids: torch.Tensor
    context: int
    base_at: torch.Tensor
    at: torch.Tensor
    bytes: int

    @property
    def all_shared(self) -> bool:
        """Whether both models predict at the same places everywhere."""
        return len(self.base_ids) - self.base_context == len(self.ids) - self.context == len(self.at)


def shared_windows(
    documents: Iterable[str],
    base_tokenizer: Any,
    tokenizer: Any,
    tokens: TokenMap,
    length: int,
    count: int,
    *,
    seed: int,
    label: str,
    limits: tuple[int | None, int | None] = (None, None),
) -> tuple[SharedWindow, ...] | None:
    """Cut text into windows for two models, as `text_windows` cuts it for the base.

    A window differs from the base's own only where the model has no boundary at its beginning or end, or cannot read
    so many tokens: then it begins later, or ends earlier.

    Args:
        documents: The text.
        base_tokenizer: The base's tokenizer.
        tokenizer: The model's, which has a part of the base's tokens.
        tokens: How the base's tokens correspond to the model's.
        length: Tokens in a window of the base.
        count: Number of windows.
        seed: Seed of the documents' order.
        label: Name of the text, for messages.
        limits: The most tokens that base and model can read, None where there is no limit.

    Returns:
        The windows; None where the two tokenizers do not stand for the same text, as where one has an unknown token
        in place of a part of it.

    Raises:
        DataError: The text is too short for that many windows, or the two have too few boundaries in common.
    """
    texts = in_order(documents, seed)
    base_stream = list(token_stream(texts, base_tokenizer, count * length, positions=True))
    base_begin, begin = beginning(base_tokenizer), beginning(tokenizer)
    base_ids = [token for token, _, _ in base_stream]
    starts = window_starts(base_ids, base_begin, length, count, label=label)
    read = texts[: base_stream[-1][1] + 1]
    stream = list(token_stream(read, tokenizer, None, positions=True))
    ids = [token for token, _, _ in stream]
    marks = _boundaries(_by_document(base_stream, len(read)), _by_document(stream, len(read)), tokens)
    if marks is None:
        return None
    pieces = token_texts(texts, base_stream)
    base_marks, inside = [base for base, _ in marks], length - len(base_begin)
    begun = bool(base_begin) and bool(begin)
    room = [None if most is None else most - len(own) for most, own in zip(limits, (base_begin, begin), strict=True)]
    windows = []
    for start in starts:
        first, last = bisect_left(base_marks, start), bisect_right(base_marks, start + inside) - 1
        while last > first and _too_long(marks[first], marks[last], room):
            last -= 1
        begins = first if begun else first + 1
        if last <= begins:
            raise DataError(
                f"the model and its base have too few boundaries between tokens in common in a window of {label}; "
                "use longer windows (--eval-length), or leave out --base"
            )
        (base_from, own_from), (base_to, own_to) = marks[first], marks[last]
        predicted = torch.tensor(marks[begins:last], dtype=torch.int64)
        text = pieces[marks[begins][0] : base_to]
        windows.append(
            SharedWindow(
                torch.tensor([*base_begin, *base_ids[base_from:base_to]], dtype=torch.int64),
                len(base_begin) + marks[begins][0] - base_from,
                torch.tensor([*begin, *ids[own_from:own_to]], dtype=torch.int64),
                len(begin) + marks[begins][1] - own_from,
                predicted[:, 0] - base_from + len(base_begin) - 1,
                predicted[:, 1] - own_from + len(begin) - 1,
                sum(len(piece.encode()) for piece in text if piece is not None),
            )
        )
    return tuple(windows)


def _too_long(first: tuple[int, int], last: tuple[int, int], room: Sequence[int | None]) -> bool:
    """Whether the tokens between two boundaries are more than a model has room for."""
    return any(most is not None and end - start > most for start, end, most in zip(first, last, room, strict=True))


def _by_document(stream: Sequence[tuple[int, int, int | None]], count: int) -> list[tuple[list[int], bool]]:
    """Return the tokens of each document's text, and whether the end-of-text token follows."""
    found: list[tuple[list[int], bool]] = [([], False) for _ in range(count)]
    for token, number, end in stream:
        if end is None:
            found[number] = (found[number][0], True)
        else:
            found[number][0].append(token)
    return found


def _boundaries(
    base: Sequence[tuple[list[int], bool]], own: Sequence[tuple[list[int], bool]], tokens: TokenMap
) -> list[tuple[int, int]] | None:
    """Return where both have read the same text: how many tokens each has read, ascending; None if texts differ."""
    found = [(0, 0)]
    base_read = own_read = 0
    for (base_ids, base_ended), (ids, ended) in zip(base, own, strict=True):
        if not tokens.covers_alike(base_ids, ids):
            return None
        at_base, at_own = tokens.shared(base_ids, ids)
        found += zip((at_base + base_read + 1).tolist(), (at_own + own_read + 1).tolist(), strict=True)
        base_read += len(base_ids)
        own_read += len(ids)
        if base_ended or ended:
            if base_ended != ended:  # one of them has no token for the end of a text: both are beyond it afterwards
                found.pop()
            base_read += base_ended
            own_read += ended
            found.append((base_read, own_read))
    return found
