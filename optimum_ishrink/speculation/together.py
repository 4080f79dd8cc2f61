"""A base alone and with its drafts, in turn: acceptance, identity of the output, and speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from ..core.progress import progress_bar
from ..errors import DataError
from ..evaluation.latency import undisturbed
from ..evaluation.timing import compare_timings, in_turn
from ..report.draft import Divergent, DraftTiming
from .assisted import Drafter, logit_gap, set_policy, write
from .formula import NO_ROUNDS, Policy, Rounds
from .own_text import OwnText

BASE = "the base alone"

Rate = Callable[[str, int], float]
"""Takes a name, `BASE` or a draft's, and the number of a prompt; returns the tokens per second of one output."""


def decode_in_turn(
    names: Sequence[str], prompts: int, rounds: int, rate: Rate
) -> dict[str, list[tuple[float, float]]]:
    """Time the base alone and drafts in turn: in each round one prompt, A B C C B A, then C B A A B C.

    Args:
        names: The base first.
        prompts: Prompts, which the rounds take one after another.
        rounds: Measured rounds; one more before them does not count.
        rate: Writes one output.

    Returns:
        For each name and round: tokens per second of its two turns.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with progress_bar("decoding in turn", rounds + 1) as advance:
        for number in range(rounds + 1):
            forward = in_turn(names, number)
            turns: dict[str, list[float]] = {name: [] for name in names}
            for name in forward + forward[::-1]:
                turns[name].append(rate(name, number % prompts))
            if number:
                for name, (first, second) in turns.items():
                    found[name].append((first, second))
            advance(1)
    return found


def timings(
    rates: Mapping[str, Sequence[tuple[float, float]]],
    rounds: Mapping[str, Rounds],
    divergent: Mapping[str, Sequence[Divergent]],
    prompts: int,
) -> dict[str, DraftTiming]:
    """Return the timing of each draft, compared with the base alone by the rule for speeds.

    Args:
        rates: What `decode_in_turn` returned.
        rounds: What happened in the rounds after all prompts, by draft.
        divergent: Prompts after which the output is not the base's, by draft.
        prompts: Prompts.
    """
    base, *drafts = rates
    own = [math.log(second / first) for first, second in rates[base]]
    logs = {name: [math.log(a * b) / 2 for a, b in values] for name, values in rates.items()}
    ratios = [[ours - theirs for ours, theirs in zip(logs[name], logs[base], strict=True)] for name in drafts]
    compared = compare_timings([(each, own) for each in ratios])
    speeds = {name: median(rate for turns in values for rate in turns) for name, values in rates.items()}
    return {
        name: DraftTiming(
            speed=speed,
            base_tokens_per_second=speeds[base],
            tokens_per_second=speeds[name],
            tokens=rounds[name].tokens,
            passes=rounds[name].passes,
            drafted=rounds[name].drafted,
            accepted=rounds[name].accepted,
            prompts=prompts,
            identical=prompts - len(divergent[name]),
            divergent=tuple(divergent[name]),
        )
        for name, speed in zip(drafts, compared, strict=True)
    }


def measure_together(
    base: Any, drafters: Mapping[str, tuple[Drafter, Policy]], texts: Sequence[OwnText], rounds: int
) -> dict[str, DraftTiming]:
    """Write after all prompts with each draft, compare with what the base wrote alone, and time all in turn.

    Args:
        base: The base.
        drafters: Each draft with how long it proposes, by its name.
        texts: What the base wrote alone.
        rounds: Measured rounds.

    Raises:
        DataError: What is written is too short to time.
    """
    counted: dict[str, Rounds] = {}
    divergent: dict[str, list[Divergent]] = {}
    with progress_bar("comparing outputs", len(drafters) * len(texts)) as advance:
        for name, (drafter, policy) in drafters.items():
            set_policy(drafter.model, policy)
            counted[name], divergent[name] = NO_ROUNDS, []
            for number, text in enumerate(texts):
                found = write(base, text.prompt, len(text.written.tokens), drafter)
                counted[name] += found.rounds
                if found.tokens != text.written.tokens:
                    divergent[name].append(_difference(base, text, found.tokens, number))
                advance(1)
    # The first pass reads the prompt, and its time is none of decoding: there has to be a second one.
    longest = max((policy.length for _, policy in drafters.values()), default=1)
    timed = [text for text in texts if len(text.written.tokens) > longest + 1]

    def rate(name: str, number: int) -> float:
        text = timed[number]
        drafter = None
        if name != BASE:
            drafter, policy = drafters[name]
            set_policy(drafter.model, policy)
        found = write(base, text.prompt, len(text.written.tokens), drafter).rate
        assert found is not None, "one pass cannot write it all"
        return found

    if not timed:
        raise DataError(
            "the base writes too few tokens after every prompt to time them; give other --draft-text, or more "
            "--new-tokens"
        )
    models = {BASE: base, **{name: drafter.model for name, (drafter, _) in drafters.items()}}
    with undisturbed(models):
        rates = decode_in_turn([BASE, *drafters], len(timed), rounds, rate)
    return timings(rates, counted, divergent, len(texts))


def first_difference(own: Sequence[int], other: Sequence[int]) -> int:
    """Return where two outputs first differ: where the shorter one ends, if it is the beginning of the other.

    Args:
        own: Tokens of one.
        other: Tokens of the other.
    """
    at = (i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b)
    return next(at, min(len(own), len(other)))


def _difference(base: Any, text: OwnText, other: Sequence[int], number: int) -> Divergent:
    """Return where an output differs from what the base wrote alone."""
    own = text.written.tokens
    at = first_difference(own, other)
    gap = None
    if at < min(len(own), len(other)):
        gap = logit_gap(base, text.prompt, own, other[at], at)
    return Divergent(number, at, gap)
