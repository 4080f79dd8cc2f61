"""An answer with its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..core.json_codec import to_plain

Ended = Literal["stop", "length", "user"]


@dataclass(frozen=True)
class Answer:
    """What a model answered, and how long that took.

    Args:
        text: The answer.
        tokens: Tokens that the model generated, with the one that ends the answer.
        prompt_tokens: Tokens of the prompt, with the conversation before it.
        cached_tokens: How many of these were in the key-value cache since the turn before, and were not read again.
        first_token_seconds: From the request to the first token; None where there is none.
        decode_tokens_per_second: Tokens after the first, by the time since the first; None where there are none.
        total_seconds: From the request to the end of the answer.
        ended: `stop` where the model ended it, `length` where it was cut off, `user` where it was interrupted.
    """

    text: str
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    first_token_seconds: float | None
    decode_tokens_per_second: float | None
    total_seconds: float
    ended: Ended

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        found: dict[str, Any] = to_plain(self)
        return found

    def __str__(self) -> str:
        return self.text
