"""Whether one model is faster than another: paired ratios, an exact test, and what a model differs from itself by.

The rule, its reasons and its error rates are in docs/benchmark.md. In short, a difference is called one when

- the sign test over rounds finds it, at a level that is shared among all timings of the run (Holm's procedure), and
- it is larger than what the first model differs from itself by in the same rounds, and than `LEAST`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

LEVEL = 0.01
"""Chance, per run, of calling a difference that is not there. Small, so that even of many runs hardly any is wrong."""

LEAST = 0.02
"""Differences below this share are called none: even two copies of one model lie elsewhere in memory, and what that
costs does not average out within a process."""

CONFIDENCE = 1 - LEVEL
"""Of intervals: one that holds 1 is one in which the sign test, alone, finds no difference."""

_RESAMPLES = 1000

FASTER, SLOWER, NO_DIFFERENCE, TOO_FEW = "faster", "slower", "no difference", "too few rounds to tell"


@dataclass(frozen=True)
class TimingComparison:
    """One timing of two models, round by round.

    Args:
        ratio: Median over rounds of speed against the first model's; above 1 is faster.
        interval: Confidence interval of that median, from the order of the rounds: no distribution is assumed.
        coverage: Its exact confidence; with few rounds it is below `CONFIDENCE`.
        p_value: Two-sided exact sign test of the rounds.
        adjusted_p_value: The same, after Holm's procedure over all timings of the run.
        spread: What the first model differs from itself by, as a share: 95 % of such medians lie within.
        verdict: `faster`, `slower`, `no difference`, or `too few rounds to tell`.
        round_ratios: The ratio in each round.
        self_ratios: The first model's two turns against each other, in each round.
    """

    ratio: float
    interval: tuple[float, float]
    coverage: float
    p_value: float
    adjusted_p_value: float
    spread: float
    verdict: str
    round_ratios: tuple[float, ...]
    self_ratios: tuple[float, ...]

    @property
    def inverted(self) -> TimingComparison:
        """The same of durations instead of speeds: below 1 is faster."""
        low, high = self.interval
        return replace(
            self,
            ratio=1 / self.ratio,
            interval=(1 / high, 1 / low),
            round_ratios=tuple(1 / ratio for ratio in self.round_ratios),
            self_ratios=tuple(1 / ratio for ratio in self.self_ratios),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, lists in place of tuples, as a report's JSON has them."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def in_turn(names: Iterable[str], number: int) -> list[str]:
    """Return the order of a round in which each takes one turn: A B, B A, A B and so on.

    Args:
        names: What takes turns.
        number: Number of the round, from 0.
    """
    order = list(names)
    return order if number % 2 == 0 else order[::-1]


def sign_test(values: Sequence[float]) -> float:
    """Return the two-sided p-value that the values' median is zero: an exact binomial test of their signs.

    Args:
        values: One value a round. Zeros count for neither side, and are left out.
    """
    above, below = sum(value > 0 for value in values), sum(value < 0 for value in values)
    n = above + below
    tail = sum(math.comb(n, k) for k in range(min(above, below) + 1))
    return min(1.0, 2 * tail / 2.0**n)


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Return the narrowest interval between two values, equally far from both ends, that holds the median.

    Args:
        values: One value a round.
        confidence: How sure it has to be. Few values cannot be that sure; all of them are taken then.

    Returns:
        The ends, and the exact confidence for independent rounds of any distribution.
    """
    ordered, n = sorted(values), len(values)

    def missed(k: int) -> float:
        """Return how often at most k of n rounds lie below the median, or above it."""
        return 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2.0**n

    k = 0
    while 2 * (k + 2) <= n and 1 - missed(k + 1) >= confidence:
        k += 1
    return ordered[k], ordered[n - 1 - k], max(0.0, 1 - missed(k))


def self_spread(values: Sequence[float], quantile: float = 0.95) -> float:
    """Return how far from zero the median over rounds of a model against itself gets by chance.

    Rounds are drawn again with replacement, each with a random sign: which of a model's two turns is called the first
    says nothing.

    Args:
        values: The logarithm of the ratio of the model's two turns, one a round.
        quantile: Share of the medians that lie within.
    """
    generator = torch.Generator().manual_seed(0)
    n = len(values)
    rounds = torch.randint(n, (_RESAMPLES, n), generator=generator)
    signs = 2 * torch.randint(2, (_RESAMPLES, n), generator=generator) - 1
    medians = (torch.tensor(values, dtype=torch.float64)[rounds] * signs).quantile(0.5, dim=1)
    return float(medians.abs().quantile(quantile))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being several: Holm's step-down procedure.

    Args:
        p_values: One for each test of the family.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def compare_timings(timings: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[TimingComparison]:
    """Compare two models on every timing of a run.

    Args:
        timings: For each timing, over its rounds: the logarithm of the speed against the first model's, and of the
            first model's first turn against its second.

    Returns:
        A comparison for each timing.
    """
    adjusted = holm([sign_test(ratios) for ratios, _ in timings])
    return [
        _judge(ratios, own, p_value, len(timings)) for (ratios, own), p_value in zip(timings, adjusted, strict=True)
    ]


def _judge(ratios: Sequence[float], own: Sequence[float], adjusted: float, family: int) -> TimingComparison:
    middle, spread = median(ratios), self_spread(own)
    low, high, coverage = median_interval(ratios)
    if family * 2.0 ** (1 - len(ratios)) > LEVEL:
        verdict = TOO_FEW  # not even rounds that all agree would pass the test
    elif adjusted <= LEVEL and abs(middle) > max(spread, math.log1p(LEAST)):
        verdict = FASTER if middle > 0 else SLOWER
    else:
        verdict = NO_DIFFERENCE
    return TimingComparison(
        ratio=math.exp(middle),
        interval=(math.exp(low), math.exp(high)),
        coverage=coverage,
        p_value=sign_test(ratios),
        adjusted_p_value=adjusted,
        spread=math.expm1(spread),
        verdict=verdict,
        round_ratios=tuple(map(math.exp, ratios)),
        self_ratios=tuple(map(math.exp, own)),
    )
