"""Text for calibration and evaluation: local files, Hub data sets, or the model's own words.

A text source is `self`, `FILE.txt`, `FILE.jsonl` or a Hub data set id with optional `:config`, `:split` and `:column`.
Text is tokenised, joined with the end-of-text token and cut into windows of equal length, so that no token is padding.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch

from ..errors import DataError


def token_windows(
    documents: Iterable[str],
    tokenizer: Any,
    length: int,
    count: int | None,
    *,
    seed: int | None,
    label: str,
    skip: int = 0,
) -> torch.Tensor:
    """Cut text into windows of equal length.

    Args:
        documents: The text.
        tokenizer: The model's tokenizer.
        length: Tokens in a window.
        count: Windows wanted; None for all that the text gives.
        seed: Draw documents and windows in an order of this seed; None keeps the text's own order.
        label: Name of the text, for messages.
        skip: Tokens to pass over first, in the same order: windows behind them share no token with those before.

    Returns:
        Token ids, int64, shape (windows, length).

    Raises:
        DataError: The text is shorter than one window, or than the windows wanted.
    """
    wanted = None if count is None else skip + count * length
    tokens = [token for token, _, _ in token_stream(in_order(documents, seed), tokenizer, wanted)]
    count = enough_windows(len(tokens), length, count, label=label, skip=skip)
    return torch.tensor(tokens[skip : skip + count * length], dtype=torch.int64).view(count, length)


def in_order(documents: Iterable[str], seed: int | None) -> list[str]:
    """Return documents in an order of this seed, or in their own when it is None."""
    texts = list(documents)
    if seed is not None:
        random.Random(seed).shuffle(texts)
    return texts


def token_stream(
    texts: Sequence[str], tokenizer: Any, wanted: int | None, *, positions: bool = False
) -> Iterator[tuple[int, int, int | None]]:
    """Yield the tokens of texts, each text followed by the end-of-text token where the tokenizer has one.

    Args:
        texts: The texts.
        tokenizer: The model's tokenizer.
        wanted: Tokens after which no further batch of texts is read; None for all.
        positions: Say where each token ends, which only tokenizers of the tokenizers library know.

    Yields:
        The token's id, the number of its text, and the character of that text at which it ends: 0 when positions are
        not asked for, None for the end-of-text token. What no token covers belongs to the token behind it, or to the
        text's last one.
    """
    separator = tokenizer.eos_token_id
    count = 0
    for start in range(0, len(texts), 64):
        if wanted is not None and count >= wanted:
            return
        batch = texts[start : start + 64]
        also = {"return_offsets_mapping": True} if positions else {}
        found = tokenizer(batch, add_special_tokens=False, verbose=False, **also)
        for number, ids in enumerate(found["input_ids"]):
            ends = [0] * len(ids)
            if positions and ids:
                ends = list(accumulate((end for _, end in found["offset_mapping"][number]), max))
                ends[-1] = len(batch[number])
            yield from ((token, start + number, end) for token, end in zip(ids, ends, strict=True))
            count += len(ids)
            if separator is not None:
                yield separator, start + number, None
                count += 1


def enough_windows(tokens: int, length: int, count: int | None, *, label: str, skip: int = 0) -> int:
    """Return how many windows some tokens give: those that were asked for, or all when None were.

    Args:
        tokens: Tokens that the text has.
        length: Tokens in a window.
        count: Windows wanted.
        label: Name of the text, for messages.
        skip: Tokens to pass over first.

    Raises:
        DataError: There are too few tokens.
    """
    available = max(0, tokens - skip) // length
    if available < (1 if count is None else count):
        raise DataError(
            f"{label} gives {tokens} tokens, {available} windows of {length}"
            + (f" behind the {skip} that are calibrated on" if skip else "")
            + ("" if count is None else f"; {count} were asked for")
            + ": give more text, or fewer or shorter windows"
        )
    return available if count is None else count
