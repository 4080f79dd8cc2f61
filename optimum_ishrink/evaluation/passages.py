"""Windows of a text, with the text of every token: the basis of bits per byte."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DataError
from ..text.windows import beginning, in_order, token_stream, window_starts


@dataclass(frozen=True)
class Passage:
    """The text of one window.

    Args:
        context: Text of the window's first token, which is read and not predicted. It is empty where the tokenizer
            begins a text with a token of its own, and so the window: then all of the text is predicted.
        parts: Text of the other tokens, split where a document ends.
        ended: For each part, whether a document ends after it.
    """

    context: str
    parts: tuple[str, ...]
    ended: tuple[bool, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the predicted text in UTF-8."""
        return sum(len(part.encode()) for part in self.parts)


@dataclass(frozen=True)
class TextWindows:
    """Windows of a text.

    Args:
        ids: Token ids, int64, shape (windows, length).
        passages: The text of each window; None where the tokenizer does not map tokens to text.
        context: Tokens at the start of each window that are read and not predicted.
    """

    ids: torch.Tensor
    passages: tuple[Passage, ...] | None = None
    context: int = 1

    def __len__(self) -> int:
        return len(self.ids)


def text_windows(
    documents: Iterable[str], tokenizer: Any, length: int, count: int, *, seed: int, label: str
) -> TextWindows:
    """Cut text into windows of equal length, the same as `token_windows`, with the text of each.

    Args:
        documents: The text.
        tokenizer: The model's tokenizer.
        length: Tokens in a window.
        count: Number of windows.
        seed: Seed of the documents' order.
        label: Name of the text, for messages.

    Raises:
        DataError: The text is too short for that many windows.
    """
    texts = in_order(documents, seed)
    knows_text = bool(getattr(tokenizer, "is_fast", False))
    stream = list(token_stream(texts, tokenizer, count * length, positions=knows_text))
    begin, ids = beginning(tokenizer), [token for token, _, _ in stream]
    starts, inside = window_starts(ids, begin, length, count, label=label), length - len(begin)
    windows = torch.tensor([[*begin, *ids[start : start + inside]] for start in starts], dtype=torch.int64)
    context = max(1, len(begin))
    if not knows_text:
        return TextWindows(windows, context=context)
    pieces = token_texts(texts, stream)
    passages = []
    for start in starts:
        part = pieces[start : start + inside]
        passages.append(_passage(["", *part] if begin else part))
    return TextWindows(windows, tuple(passages), context)


def token_texts(texts: Sequence[str], stream: Sequence[tuple[int, int, int | None]]) -> list[str | None]:
    """Return the text of each token; None for the end of a document.

    Args:
        texts: The documents.
        stream: Their tokens, as `token_stream` yields them with positions.
    """
    pieces: list[str | None] = []
    at, current = 0, -1
    for _, number, end in stream:
        if number != current:
            at, current = 0, number
        pieces.append(None if end is None else texts[number][at:end])
        at = at if end is None else end
    return pieces


def _passage(pieces: list[str | None]) -> Passage:
    parts, ended = [""], [False]
    for piece in pieces[1:]:
        if piece is not None:
            if ended[-1]:
                parts.append("")
                ended.append(False)
            parts[-1] += piece
        elif ended[-1]:  # a document without text: the end of one follows the end of another
            parts.append("")
            ended.append(True)
        else:
            ended[-1] = True
    return Passage(pieces[0] or "", tuple(parts), tuple(ended))


def retokenize(passage: Passage, tokenizer: Any) -> tuple[torch.Tensor, int]:
    """Return a passage in another tokenizer's tokens: the same text to read, and the same text to predict.

    The text is split where the context ends, so that both models predict the same bytes. There, once per window, this
    tokenizer may split a word that it would otherwise leave whole.

    Args:
        passage: The passage.
        tokenizer: The other tokenizer.

    Returns:
        Token ids, int64, shape (length,), and how many of them are context.

    Raises:
        DataError: The context has no text, and the tokenizer has no token to replace it.
    """
    separator = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    begin = beginning(tokenizer)
    start = separator or ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id])

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []

    context = [*begin, *encode(passage.context)] or start
    if not context:
        raise DataError(
            "the base's tokenizer has neither an end- nor a beginning-of-text token to start a window with"
        )
    ids = list(context)
    for part, ended in zip(passage.parts, passage.ended, strict=True):
        ids += encode(part) + (separator if ended else [])
    return torch.tensor(ids, dtype=torch.int64), len(context)
