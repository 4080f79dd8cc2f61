"""Windows of tokens: text is tokenised, joined with the end-of-text token and cut into windows of equal length.

No token is padding, so every position counts the same.
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
        count: Number of windows; None for all that the text gives.
        seed: Seed that shuffles the documents; None for the order of the text.
        label: Name of the text, for messages.
        skip: Tokens to skip first, in the same order, so that windows share no token with those of an earlier call.

    Returns:
        Token ids, int64, shape (windows, length).

    Raises:
        DataError: The text is shorter than one window, or than `count` windows.
    """
    limit = None if count is None else skip + count * length
    tokens = [token for token, _, _ in token_stream(in_order(documents, seed), tokenizer, limit)]
    count = enough_windows(len(tokens), length, count, label=label, skip=skip)
    return torch.tensor(tokens[skip : skip + count * length], dtype=torch.int64).view(count, length)


def in_order(documents: Iterable[str], seed: int | None) -> list[str]:
    """Return documents shuffled with a seed, or in their order if it is None."""
    texts = list(documents)
    if seed is not None:
        random.Random(seed).shuffle(texts)
    return texts


def token_stream(
    texts: Sequence[str], tokenizer: Any, limit: int | None, *, positions: bool = False
) -> Iterator[tuple[int, int, int | None]]:
    """Yield the tokens of texts, each text followed by the end-of-text token where the tokenizer has one.

    Args:
        texts: The texts.
        tokenizer: The model's tokenizer.
        limit: Tokens after which no further batch of texts is read; None for all.
        positions: Whether to return where each token ends, which only tokenizers of the tokenizers library know.

    Yields:
        The token's id, the number of its text, and the character of that text at which it ends: 0 without `positions`,
        None for the end-of-text token. Characters that no token covers belong to the next token, or to the last one of
        the text.
    """
    separator = tokenizer.eos_token_id
    count = 0
    for start in range(0, len(texts), 64):
        if limit is not None and count >= limit:
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
    """Return the number of windows that some tokens give: `count` if there are enough tokens, or all if it is None.

    Args:
        tokens: Tokens that the text has.
        length: Tokens in a window.
        count: Number of windows; None for all.
        label: Name of the text, for messages.
        skip: Tokens to skip first.

    Raises:
        DataError: There are too few tokens.
    """
    available = max(0, tokens - skip) // length
    if available < (1 if count is None else count):
        raise DataError(
            f"{label} gives {tokens} tokens, {available} windows of {length}"
            + (f" after the {skip} used for calibration" if skip else "")
            + ("" if count is None else f"; {count} were requested")
            + ": give more text, or fewer or shorter windows"
        )
    return available if count is None else count
