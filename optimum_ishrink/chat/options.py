"""Options of a chat: how answers are generated."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RequestError
from ..options.base import Options
from ..options.option import option

NEW_TOKENS = 512
"""Longest answer where the model's generation config does not say."""

_COLDEST = 0.01
"""Below this, logits that are divided by the temperature overflow."""


def _check_temperature(value: float) -> None:
    if value and value < _COLDEST:
        raise RequestError(f"temperature must be 0, which is greedy decoding, or at least {_COLDEST:g}, not {value:g}")


@dataclass(frozen=True, kw_only=True, repr=False)
class ChatOptions(Options):
    """How answers are generated."""

    KIND = "option"

    system: str | None = option(None, metavar="TEXT", help="system prompt, for models with a chat template")
    temperature: float | None = option(
        None,
        ge=0,
        check=_check_temperature,
        metavar="T",
        help="sample at this temperature; 0 is greedy decoding",
        default_help="as the model's generation_config.json says",
    )
    greedy: bool = option(False, help="always take the most likely token, whatever generation_config.json says")
    max_new_tokens: int | None = option(
        None,
        metavar="N",
        help="longest answer",
        default_help=f"as generation_config.json says, or else {NEW_TOKENS}",
    )

    @property
    def is_greedy(self) -> bool | None:
        """Whether decoding is greedy; None where the model's generation config decides."""
        return True if self.greedy else None if self.temperature is None else self.temperature == 0

    def check_together(self) -> None:
        """Check that the options agree.

        Raises:
            RequestError: Greedy decoding is asked for, and a temperature as well.
        """
        if self.greedy and self.temperature:
            raise RequestError(f"greedy decoding has no temperature={self.temperature:g}; leave out one of the two")
