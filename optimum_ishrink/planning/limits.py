"""Limits as users write them: `bytes=80MB`, `memory=-20%`, `decode=+20%`, `ttft=200ms`, `params=-15%`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError, unknown_name

PARAMS, BYTES, MEMORY, DECODE, TTFT = "params", "bytes", "memory", "decode", "ttft"

METRICS: Mapping[str, str] = {
    PARAMS: "parameters",
    BYTES: "bytes of the weights' file",
    MEMORY: "bytes of memory: weights, KV cache and compute buffers",
    DECODE: "decoded tokens per second",
    TTFT: "seconds to the first token",
}
"""What can be limited."""

HIGHER_IS_BETTER = frozenset({DECODE})

_PREFIXES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
_BYTES = {f"{prefix}b": 1000**power for power, prefix in enumerate(("", "k", "m", "g"))} | {
    f"{prefix}ib": 1024**power for power, prefix in enumerate(("k", "m", "g"), start=1)
}
_UNITS: Mapping[str, Mapping[str, float]] = {
    PARAMS: _PREFIXES,
    BYTES: _BYTES,
    MEMORY: _BYTES,
    DECODE: {"": 1, "t/s": 1, "tokens/s": 1},
    TTFT: {"ms": 1e-3, "s": 1},
}
"""Allowed units of each metric in lower case, and what one of them is."""

EXAMPLES: Mapping[str, str] = {
    PARAMS: "params=-15% or params=115M",
    BYTES: "bytes=80MB or bytes=-40%",
    MEMORY: "memory=200MB or memory=-20%",
    DECODE: "decode=+20% or decode=30t/s",
    TTFT: "ttft=-20% or ttft=200ms",
}


@dataclass(frozen=True)
class Limit:
    """One limit.

    Args:
        metric: What it limits, one of `METRICS`.
        value: The limit itself; None where it is relative.
        change: The change from the unpruned model, such as -0.2; None where the limit is absolute.
        text: The limit as the user wrote it.
    """

    metric: str
    value: float | None
    change: float | None
    text: str

    def against(self, base: float) -> float:
        """Return the limit itself.

        Args:
            base: The unpruned model's figure.
        """
        if self.value is not None:
            return self.value
        assert self.change is not None
        return base * (1 + self.change)

    def allows(self, value: Any, base: float) -> Any:
        """Whether a figure keeps the limit.

        Args:
            value: The figure, or an array of figures; the answer is one for each of them.
            base: The unpruned model's.
        """
        limit = self.against(base)
        return value >= limit if self.metric in HIGHER_IS_BETTER else value <= limit


def parse_limits(text: str) -> tuple[Limit, ...]:
    """Parse limits that are joined by commas, such as `bytes=80MB,decode=+20%`.

    Args:
        text: What was typed.

    Raises:
        RequestError: A limit has another form or is given twice.
    """
    found: dict[str, Limit] = {}
    for part in text.split(","):
        limit = _parse(part.strip())
        if limit.metric in found:
            raise RequestError(f"{limit.metric} is limited twice: {found[limit.metric].text} and {limit.text}")
        found[limit.metric] = limit
    return tuple(found.values())


def parse_families(text: str) -> tuple[tuple[Limit, ...], ...]:
    """Parse several targets that are separated by semicolons, such as `params=-10%;params=-20%`.

    Args:
        text: What was typed.

    Raises:
        RequestError: A limit has another form, or two targets are the same.
    """
    found = [parse_limits(part) for part in text.split(";")]
    for number, limits in enumerate(found):
        if limits in found[:number]:
            raise RequestError(f"the target {','.join(limit.text for limit in limits)} is given twice")
    return tuple(found)


def _parse(text: str) -> Limit:
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not equals:
        raise RequestError(f"target {text!r} names no metric; write for instance {EXAMPLES[BYTES]}")
    metric = name.lower()
    if metric not in METRICS:
        raise RequestError(unknown_name("metric", name, METRICS))
    relative = re.fullmatch(r"([+-]?)\s*(\d+(?:\.\d+)?)\s*%", rest)
    absolute = re.fullmatch(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([a-z/]*)", rest.lower())
    if relative:
        return _relative(metric, relative[1], float(relative[2]) / 100, text)
    if absolute is None or absolute[2] not in _UNITS[metric]:
        raise RequestError(f"target {text!r} is not of the form {EXAMPLES[metric]}")
    value = float(absolute[1]) * _UNITS[metric][absolute[2]]
    if not math.isfinite(value):
        raise RequestError(
            f"target {text!r} is no number that a computer holds; write for instance {EXAMPLES[metric]}"
        )
    if not value > 0:
        raise RequestError(f"target {text!r} leaves nothing of the model; write for instance {EXAMPLES[metric]}")
    return Limit(metric, value, None, text)


def _relative(metric: str, sign: str, share: float, text: str) -> Limit:
    wanted = "+" if metric in HIGHER_IS_BETTER else "-"
    if sign != wanted or share == 0 or (wanted == "-" and share >= 1):
        what = "more" if wanted == "+" else "less, and less than all of it"
        raise RequestError(f"target {text!r} has to ask for {what}: write for instance {EXAMPLES[metric]}")
    return Limit(metric, None, share if wanted == "+" else -share, text)


def readable(metric: str, value: float) -> str:
    """Return a figure with its unit.

    Args:
        metric: What it is of.
        value: The figure.
    """
    if metric in (BYTES, MEMORY):
        return f"{value / 1e6:,.1f} MB"
    if metric == TTFT:
        return f"{value * 1000:,.0f} ms"
    if metric == DECODE:
        return f"{value:,.1f} tokens/s"
    return f"{value:,.0f} parameters"
