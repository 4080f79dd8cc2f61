"""Two models on the same questions: an interval for the retained share, and a test of whether they differ.

The same questions are hard for both models, so most of the spread of two scores is shared. Only the questions on which
the models differ show which one is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

CONFIDENCE = 0.95
RESAMPLES = 10_000
_AT_ONCE = 2**22
"""Draws held in memory at once."""


@dataclass(frozen=True)
class Stratum:
    """Questions that are resampled among themselves, such as those of one task of a group.

    Args:
        weight: Weight of their mean in the figure.
        base: The base's value for each question.
        shrunk: The shrunk model's, in the same order.
    """

    weight: float
    base: Sequence[float]
    shrunk: Sequence[float]

    @property
    def is_binary(self) -> bool:
        """Whether every answer is right (1) or wrong (0)."""
        return set(self.base) | set(self.shrunk) <= {0, 1}


@dataclass(frozen=True)
class PairedInterval:
    """Ratio and difference of two figures, with confidence intervals.

    Args:
        ratio: The shrunk model's figure over the base's; None when the base's is 0, or one may be below it.
        ratio_low: Lower end of its interval; None when there is no ratio.
        ratio_high: Upper end; None when it is not bounded, because the base's figure may be 0.
        difference: The shrunk model's figure minus the base's.
        difference_low: Lower end of its interval.
        difference_high: Upper end.
        base: The base's figure.
    """

    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    difference: float
    difference_low: float
    difference_high: float
    base: float


def mcnemar(base_only: int, shrunk_only: int) -> float:
    """Return the two-sided p-value of McNemar's exact test that both models are right equally often.

    Under that hypothesis each question that only one model gets right is the base's with probability 1/2, so the count
    is binomial (McNemar 1947; exact form as in Fagerland, Lydersen and Laake 2013, section 'exact conditional test').

    Args:
        base_only: Questions that only the base got right.
        shrunk_only: Questions that only the shrunk model got right.
    """
    total = base_only + shrunk_only
    tail = sum(math.comb(total, count) for count in range(min(base_only, shrunk_only) + 1))
    return min(1.0, tail / 2 ** (total - 1)) if total else 1.0


def paired_interval(
    strata: Sequence[Stratum],
    *,
    transform: Callable[[Floats], Floats] = lambda means: means,
    seed: int = 0,
) -> PairedInterval:
    """Return 95% intervals of ratio and difference of two figures: the percentile bootstrap over questions, in pairs.

    Each of 10,000 times, as many questions are drawn as there are, with replacement and each with both models'
    answers; the interval holds the middle 95% of the results (Efron and Tibshirani 1993, chapter 13). Where
    answers are right or wrong, half a question is added to each of the two kinds on which the models differ before
    drawing: otherwise a few questions that both answer alike would give an interval of zero width.

    Args:
        strata: The questions; the figure is the weighted sum of the strata's means.
        transform: Turns that sum into the figure, such as `exp` for a perplexity of log-likelihoods.
        seed: Seed of the resampling.
    """
    generator = np.random.default_rng(seed)
    total = sum(stratum.weight for stratum in strata)
    point, drawn = np.zeros(2), np.zeros((RESAMPLES, 2))
    for stratum in strata:
        values = np.array([stratum.base, stratum.shrunk], dtype=np.float64).T
        draw = _draw_answers if stratum.is_binary else _draw_means
        point += stratum.weight / total * values.mean(axis=0)
        drawn += stratum.weight / total * draw(values, generator)
    base, shrunk = (float(value) for value in transform(point))
    drawn_base, drawn_shrunk = transform(drawn).T
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = (float(end) for end in np.quantile(drawn_shrunk - drawn_base, ends))
    ratio = ratio_low = ratio_high = None
    # Of figures below zero, such as log-likelihoods, a share that is retained would say the opposite.
    if base > 0 and min(shrunk, drawn_base.min(), drawn_shrunk.min()) >= 0:
        ratio = shrunk / base
        with np.errstate(divide="ignore", invalid="ignore"):
            # A draw in which the base is never right has no ratio; it counts as infinite.
            ratios = np.where(drawn_base != 0, drawn_shrunk / drawn_base, np.inf)
        found = [float(end) for end in np.quantile(ratios, ends, method="nearest")]
        ratio_low, ratio_high = (end if math.isfinite(end) else None for end in found)
    return PairedInterval(ratio, ratio_low, ratio_high, shrunk - base, low, high, base)


def _draw_answers(values: Floats, generator: np.random.Generator) -> Floats:
    """Return means of drawn right and wrong answers, shape (resamples, 2): four counts are sufficient."""
    base, shrunk = values.T
    both, neither = (base * shrunk).sum(), ((1 - base) * (1 - shrunk)).sum()
    base_only, shrunk_only = (base * (1 - shrunk)).sum(), ((1 - base) * shrunk).sum()
    cells = np.array([both, base_only + 0.5, shrunk_only + 0.5, neither])
    counts = generator.multinomial(len(values), cells / cells.sum(), size=RESAMPLES)
    return (counts[:, [0, 0]] + counts[:, [1, 2]]) / len(values)


def _draw_means(values: Floats, generator: np.random.Generator) -> Floats:
    """Return means of drawn pairs, shape (resamples, 2)."""
    means = []
    rows = max(1, _AT_ONCE // len(values))
    for start in range(0, RESAMPLES, rows):
        chosen = generator.integers(len(values), size=(min(rows, RESAMPLES - start), len(values)))
        means.append(values[chosen].mean(axis=1))
    return np.concatenate(means)
