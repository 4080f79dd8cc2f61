"""Target sizes as the user writes them, and what they count."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..architectures.binding import Binding
from ..errors import RequestError, ShapeError
from .limits import BYTES, DECODE, MEMORY, TTFT, parse_limits
from .memory import Memory

CONTEXT = 2048
"""Tokens that the KV cache has room for by default: a long prompt with its answer."""

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}


class Cost(Protocol):
    """What a target counts."""

    @property
    def per_parameter(self) -> float:
        """How much one more parameter of the vocabulary counts."""

    def of(self, binding: Binding, shape: Mapping[str, int], count: int) -> float:
        """Return what a shape counts.

        Args:
            binding: The model.
            shape: The sizes by config key.
            count: Its number of parameters.
        """

    def words(self, value: float) -> str:
        """Return an amount with its unit.

        Args:
            value: The amount.
        """

    def change(self, value: float, whole: float) -> str:
        """Return by how much an amount differs.

        Args:
            value: The amount.
            whole: That of the unpruned model.
        """


@dataclass(frozen=True)
class Parameters:
    """Counts parameters."""

    per_parameter: float = 1

    def of(self, binding: Binding, shape: Mapping[str, int], count: int) -> int:
        """Return the number of parameters.

        Args:
            binding: The model.
            shape: The sizes by config key.
            count: The number of parameters.
        """
        return count

    def words(self, value: float) -> str:
        """Return an amount with its unit.

        Args:
            value: The amount.
        """
        return f"{value:,.0f} parameters"

    def change(self, value: float, whole: float) -> str:
        """Return by how much an amount differs.

        Args:
            value: The amount.
            whole: That of the unpruned model.
        """
        return f"-{1 - value / whole:.2%}"


@dataclass(frozen=True)
class Target:
    """An amount to reach.

    Args:
        amount: The amount: of parameters, unless `cost` counts bytes of memory or seconds.
        whole: That of the unpruned model.
        text: The target as the user typed it.
        at_most: Whether no more than that is allowed; else it is met as nearly as possible, from either side.
        cost: What is counted.
    """

    amount: float
    whole: float
    text: str
    at_most: bool = False
    cost: Cost = field(default_factory=Parameters)


_LIMITED = re.compile(r"\s*(bytes|memory|decode|ttft)\s*=", re.IGNORECASE)


def reads_dtype(text: str | None) -> bool:
    """Return whether a target depends on the checkpoint's dtype, and so on its config.

    Args:
        text: What was typed; None for no target.
    """
    return text is not None and _LIMITED.match(text) is not None


def limits_time(text: str | None) -> bool:
    """Return whether a target is one on time.

    Args:
        text: What was typed; None for no target.
    """
    return text is not None and re.match(r"\s*(decode|ttft)\s*=", text, re.IGNORECASE) is not None


def parse_target(
    text: str,
    num_parameters: int,
    memory: Memory | None = None,
    cache_bytes: int = 0,
    times: Callable[[str], tuple[Cost, float]] | None = None,
) -> Target:
    """Parse a target.

    `params=-15%` (15 % fewer) and `params=115M` are met as nearly as possible; `bytes=230MB`, the most bytes that the
    weights may have, `memory=300MB`, the most that weights and KV cache may take, and with a profile `decode=+20%` and
    `ttft=-20%` are not exceeded.

    Args:
        text: What was typed.
        num_parameters: Parameters of the unpruned model.
        memory: What a parameter and a token take; None for 16 bits and a context of `CONTEXT` tokens.
        cache_bytes: Bytes of the unpruned model's KV cache.
        times: Returns for `decode` or `ttft` what is expected of shapes, and of the unpruned model; None where no
            profile says.

    Raises:
        ShapeError: The text has another form, the target is not smaller than the model, or it limits what has to be
            measured.
        SourceError: The profile is damaged.
        RequestError: The profile is of another model or runtime.
    """
    if _LIMITED.match(text) or "," in text:
        return _of_limits(text, num_parameters, memory or Memory(2, CONTEXT), cache_bytes, times)
    relative = re.fullmatch(r"params\s*=\s*-\s*(\d+(?:\.\d+)?)\s*%", text.strip())
    absolute = re.fullmatch(r"params\s*=\s*(\d+(?:\.\d+)?)\s*([KMGB]?)", text.strip(), re.IGNORECASE)
    if relative:
        count = round(num_parameters * (1 - float(relative[1]) / 100))
    elif absolute:
        count = round(float(absolute[1]) * _SUFFIXES[absolute[2].upper()])
    else:
        raise ShapeError(f"target {text!r} is not of the form 'params=-15%' or 'params=115M'")
    if not 0 < count < num_parameters:
        raise ShapeError(f"target {text!r} requests {count:,} parameters; the model has {num_parameters:,}")
    return Target(count, num_parameters, text)


def _of_limits(
    text: str,
    num_parameters: int,
    memory: Memory,
    cache_bytes: int,
    times: Callable[[str], tuple[Cost, float]] | None,
) -> Target:
    """Return the target of a limit on the weights' bytes, on memory, or on time."""
    try:
        (limit, *others) = parse_limits(text)
    except RequestError as error:
        raise ShapeError(str(error)) from None
    if others:
        raise ShapeError(
            f"target {text!r} has {1 + len(others)} limits, and shrink meets one: `ishrink search --runtime torch` "
            "meets them together"
        )
    if limit.metric in (DECODE, TTFT):
        if times is None:
            raise ShapeError(
                f"target {text!r} limits {limit.metric}, which has to be measured: pass --profile FILE, which "
                "`ishrink profile --runtime torch` writes, or let `ishrink search --runtime torch` measure and meet it"
            )
        cost, seconds = times(limit.metric)
        wanted = 1 / limit.against(1 / seconds) if limit.metric == DECODE else limit.against(seconds)
        if wanted >= seconds:
            raise ShapeError(
                f"target {text!r} is no faster than the model, of which {cost.words(seconds)} are expected: nothing "
                "has to be removed"
            )
        return Target(wanted, seconds, text, at_most=True, cost=cost)
    weights = num_parameters * memory.parameter_bytes
    whole = weights + (cache_bytes if limit.metric == MEMORY else 0)
    most = limit.against(whole)
    if most >= whole and limit.metric == BYTES:
        raise ShapeError(
            f"target {text!r} is no less than the weights' {whole:,} bytes: nothing has to be removed; for fewer "
            "bytes of a GGUF file, search or export with a quantization"
        )
    if most >= whole:
        raise ShapeError(
            f"target {text!r} is no less than the model's {whole:,} bytes, {weights:,} of weights and {cache_bytes:,} "
            f"of the KV cache of {memory.context:,} tokens: nothing has to be removed"
        )
    if limit.metric == MEMORY:
        return Target(int(most), whole, text, at_most=True, cost=memory)
    return Target(int(most // memory.parameter_bytes), num_parameters, text, at_most=True)
