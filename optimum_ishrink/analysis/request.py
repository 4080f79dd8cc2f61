"""What an analysis can be asked for beyond the config of a shrink."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RequestError
from ..text.sources import parse_sources

LEVELS = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0)
"""Sparsities in percent, as in the iShrink thesis."""

SAMPLES, LENGTH = 8, 256
"""Few and short by default: an analysis makes over a hundred measurements, and compares them with one another on the
same windows, so that differences show long before the figures themselves are precise."""

MAX_DIVERGENCE = 0.5
"""KL divergence in nats per token that the advice stays below. Cuts of SmolLM2-135M-Instruct that cost 0.6 to 0.8 came
down to about half of that by compensation alone (docs/quality.md): so 0.5 leaves a model that can be repaired."""


@dataclass(frozen=True)
class AnalysisRequest:
    """What is measured, and on how much.

    Args:
        levels: Sparsities in percent, from 0 to 50: a list, or text such as `"0,10,20"`. 0, the whole model, is always
            among them.
        samples: Windows to measure on.
        length: Tokens in each.
        text: Text sources to measure on; by default further windows of what is calibrated on.
        max_divergence: KL divergence in nats per token that the advice stays below.

    Raises:
        RequestError: A value that is not allowed; the message says which are.
        DataError: The text names no source.
    """

    levels: str | Sequence[float] = LEVELS
    samples: int = SAMPLES
    length: int = LENGTH
    text: str | Sequence[str] | None = None
    max_divergence: float = MAX_DIVERGENCE

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", parse_levels(self.levels))
        if self.text is not None:
            object.__setattr__(self, "text", tuple(source.text for source in parse_sources(self.text)))
        for name, least in (("samples", 1), ("length", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RequestError(f"analysis_{name} must be a whole number of at least {least}, not {value!r}")
        value = self.max_divergence
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise RequestError(f"max_divergence must be a number of nats per token above 0, not {value!r}")

    @property
    def shares(self) -> tuple[float, ...]:
        """The levels as shares between 0 and 1."""
        return tuple(float(level) / 100 for level in self.levels)


def parse_levels(levels: str | Sequence[float]) -> tuple[float, ...]:
    """Return sparsities in percent, ascending, 0 among them.

    Args:
        levels: `"0,10,20"`, or numbers.

    Raises:
        RequestError: One is not a number from 0 to 50, or none is above 0.
    """
    items = levels.split(",") if isinstance(levels, str) else levels
    if not isinstance(items, Sequence):
        raise RequestError(f"levels must be a list of percentages such as 0,10,25, not {levels!r}")
    found = {0.0}
    for item in items:
        text = item.strip() if isinstance(item, str) else repr(item)
        if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) > 50:
            raise RequestError(f"level {text!r} is not a percentage from 0 to 50; write levels such as 0,10,25")
        found.add(float(text))
    if found == {0.0}:
        raise RequestError("levels must hold one above 0, such as 0,10,25")
    return tuple(sorted(found))
