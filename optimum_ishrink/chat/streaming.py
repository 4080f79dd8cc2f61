"""Text that is passed on while tokens arrive, and the times at which they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_UNFINISHED = "\ufffd"
"""What a tokenizer writes for the bytes of a character of which more are to come."""


class PieceReader:
    """Turns tokens into pieces of text, one token at a time.

    A token alone may decode to something else than after its neighbours: a word without its space, or a part of a
    character. So a few tokens before it are decoded together with it. The cost of a token does not grow with the text.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = self._shown = 0

    def add(self, token: int) -> str:
        """Return the text that one more token completes; nothing while a character is unfinished."""
        self._tokens.append(token)
        before, now = self._texts()
        if len(now) <= len(before) or now.endswith(_UNFINISHED):
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return now[len(before) :]

    def close(self) -> str:
        """Return what is left, unfinished characters included."""
        before, now = self._texts()
        self._start = self._shown = len(self._tokens)
        return now[len(before) :]

    def _texts(self) -> tuple[str, str]:
        def decode(tokens: list[int]) -> str:
            return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

        return decode(self._tokens[self._start : self._shown]), decode(self._tokens[self._start :])


class TokenClock:
    """What `generate` calls a streamer: it takes the tokens one by one, passes on text, and notes the times.

    Args:
        tokenizer: The tokenizer.
        on_text: Called with each piece of text as soon as it is complete.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self._reader = PieceReader(tokenizer)
        self._on_text = on_text
        self._has_prompt = False
        self.pieces: list[str] = []
        self.tokens: list[int] = []
        self.times: list[float] = []

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self.pieces)

    def put(self, value: Any) -> None:
        """Take the prompt's tokens first, which are passed over, then the new ones.

        Args:
            value: A tensor of token ids.
        """
        if not self._has_prompt:
            self._has_prompt = True
            return
        for token in value.flatten().tolist():
            self.times.append(time.perf_counter())
            self.tokens.append(token)
            self._pass_on(self._reader.add(token))

    def end(self) -> None:
        """Pass on what is left."""
        self._pass_on(self._reader.close())

    def _pass_on(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)
            self._on_text(piece)
