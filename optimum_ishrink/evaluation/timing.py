"""Whether one model is faster than another: paired ratios, an exact test, and a model's difference from itself.

The rule and its reasons are in docs/explanation/statistics.md, its error rates in docs/experiments/speed.md. In short,
a difference is reported when

- the sign test over rounds finds it, at a level shared among all timings of the run (Holm's procedure), and
- it is larger than `LEAST` and than the first model's difference from itself in the same rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from ..report.measurement import SpeedComparison
from .self_spread import self_spread

LEVEL = 0.01
"""Probability, per run, of reporting a difference that does not exist. Small, so that few of many runs are wrong."""

LEAST = 0.02
"""Smaller differences, as a share, are not reported: even two copies of one model differ in their place in memory, and
the effect of that does not average out within a process."""

CONFIDENCE = 1 - LEVEL
"""Of intervals: one contains 1 exactly where the sign test, alone, finds no difference."""

FASTER, SLOWER, NO_DIFFERENCE, TOO_FEW = "faster", "slower", "no difference", "too few rounds to tell"


def in_turn(names: Iterable[str], number: int) -> list[str]:
    """Return the order of a round in which each takes one turn: A B, B A, A B and so on.

    Args:
        names: The models.
        number: Number of the round, from 0.
    """
    order = list(names)
    return order if number % 2 == 0 else order[::-1]


def sign_test(values: Sequence[float]) -> float:
    """Return the two-sided p-value that the values' median is zero: an exact binomial test of their signs.

    Args:
        values: One value per round. Zeros count for neither side and are left out.
    """
    above, below = sum(value > 0 for value in values), sum(value < 0 for value in values)
    n = above + below
    tail = sum(math.comb(n, k) for k in range(min(above, below) + 1))
    return min(1.0, 2 * tail / 2.0**n)


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Return the narrowest interval between two values of symmetric rank that contains the median.

    Args:
        values: One value per round.
        confidence: Required confidence. If it cannot be reached with few values, the interval spans all of them.

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


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple tests by Holm's step-down procedure.

    Args:
        p_values: One for each test of the family.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def compare_timings(timings: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[SpeedComparison]:
    """Compare two models on every timing of a run.

    Args:
        timings: For each timing, over its rounds: the log of the speed ratio to the first model, and that of the
            first model's two turns.

    Returns:
        A comparison for each timing.
    """
    adjusted = holm([sign_test(ratios) for ratios, _ in timings])
    return [
        _judge(ratios, own, p_value, len(timings)) for (ratios, own), p_value in zip(timings, adjusted, strict=True)
    ]


def _judge(ratios: Sequence[float], own: Sequence[float], adjusted: float, family: int) -> SpeedComparison:
    middle, spread = median(ratios), self_spread(own)
    low, high, coverage = median_interval(ratios)
    if family * 2.0 ** (1 - len(ratios)) > LEVEL:
        verdict = TOO_FEW  # not even rounds that all agree would pass the test
    elif adjusted <= LEVEL and abs(middle) > max(spread, math.log1p(LEAST)):
        verdict = FASTER if middle > 0 else SLOWER
    else:
        verdict = NO_DIFFERENCE
    return SpeedComparison(
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
