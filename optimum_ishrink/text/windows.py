"""Windows of tokens: text is tokenised, joined with the end-of-text token and cut into windows of equal length.

No token is padding, so every position counts the same. Where the tokenizer begins a text with a token of its own
(BOS), every window begins with it, as every text did that the model was trained on.
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
    ids = [token for token, _, _ in token_stream(in_order(documents, seed), tokenizer, limit)]
    begin = beginning(tokenizer)
    starts = window_starts(ids, begin, length, count, label=label, skip=skip)
    inside = length - len(begin)
    return torch.tensor([[*begin, *ids[start : start + inside]] for start in starts], dtype=torch.int64)


def beginning(tokenizer: Any) -> list[int]:
    """Return the tokens that a tokenizer begins every text with: mostly its BOS token, or none.

    What it does counts, not whether it has such a token: SmolLM2's and GPT-2's tokenizers have one and add none.

    Args:
        tokenizer: The tokenizer.
    """
    text = "a"
    whole, bare = (
        list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]) for special in (True, False)
    )
    added = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), None)
    return [] if added is None else whole[:added]


def beginning_name(tokenizer: Any) -> str | None:
    """Return the tokens that a tokenizer begins every text with as they are spelled, for reports; None for none.

    Args:
        tokenizer: The tokenizer.
    """
    begin = beginning(tokenizer)
    return "".join(map(str, tokenizer.convert_ids_to_tokens(begin))) if begin else None


def window_starts(
    ids: Sequence[int],
    begin: Sequence[int],
    length: int,
    count: int | None,
    *,
    label: str,
    skip: int = 0,
    apart: Sequence[bool] | None = None,
    remedy: str = "give more text, or fewer or shorter windows",
) -> list[int]:
    """Return where the text of each window starts in a stream of tokens.

    Args:
        ids: The tokens.
        begin: The tokens that every window begins with; `length` counts them, too. A document that begins with them
            where a window starts, as chat templates write it, does not get them twice.
        length: Tokens in a window.
        count: Number of windows; None for all that the text gives.
        label: Name of the text, for messages.
        skip: Tokens to skip first.
        apart: For each token whether no window may start with it, which then starts with the next that may; None where
            windows may start anywhere.
        remedy: What helps where there is too little text, for messages.

    Raises:
        DataError: There are too few tokens, or the windows have no room for text.
    """
    first, inside = list(begin), length - len(begin)
    if inside < 1:
        raise DataError(
            f"windows of {length} tokens have no room for text after the {len(first)} that the tokenizer begins a "
            "text with; use longer windows"
        )
    starts: list[int] = []
    at = skip
    while count is None or len(starts) < count:
        while apart is not None and at < len(ids) and apart[at]:
            at += 1
        if first and list(ids[at : at + len(first)]) == first:
            at += len(first)
        if at + inside > len(ids):
            break
        starts.append(at)
        at += inside
    if len(starts) < (1 if count is None else count):
        raise DataError(
            f"{label} gives {len(ids)} tokens, {len(starts)} windows of {length}"
            + (f" after the {skip} used for calibration" if skip else "")
            + ("" if count is None else f"; {count} were requested")
            + f": {remedy}"
        )
    return starts


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
