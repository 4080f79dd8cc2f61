"""What paired rounds say of two models: a ratio, how sure it is, and a word for it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.99
"""How sure an interval has to be before a difference is called one. There are about ten figures to a table: at 95 %
every second table of a model against itself would show a difference."""


@dataclass(frozen=True)
class Comparison:
    """The ratio shrunk over base, from rounds in which both were measured one after the other.

    Args:
        ratio: Median of the rounds' ratios.
        low: Lower end of the interval for that median.
        high: Upper end.
        confidence: Probability that such an interval holds the true median, whatever the distribution.
    """

    ratio: float
    low: float
    high: float
    confidence: float

    def verdict(self, *, lower_is_better: bool) -> str:
        """Return `better`, `worse`, `no difference`, or that there were too few rounds to tell.

        Args:
            lower_is_better: Whether the figure is one of time or size.
        """
        if self.low == self.high == 1 or (self.confidence >= CONFIDENCE and self.low <= 1 <= self.high):
            return "no difference"
        if self.confidence < CONFIDENCE:
            return "too few rounds to tell"
        return "better" if (self.high < 1) == lower_is_better else "worse"


def compare_rounds(base: Sequence[float], shrunk: Sequence[float]) -> Comparison:
    """Compare two models over paired rounds.

    The interval is that of the sign test: it runs between two of the sorted ratios and assumes nothing but that
    rounds are independent. Machines drift, so neighbours in time are compared and not one median with the other.

    Args:
        base: One value for each round.
        shrunk: The same of the other model, in the same order.
    """
    ratios = sorted(new / old for old, new in zip(base, shrunk, strict=True))
    n = len(ratios)
    drop = 0  # ratios that may be left out at either end
    while 2 * (drop + 1) < n and _confidence(n, drop + 1) >= CONFIDENCE:
        drop += 1
    return Comparison(statistics.median(ratios), ratios[drop], ratios[n - 1 - drop], _confidence(n, drop))


def _confidence(n: int, drop: int) -> float:
    """Return the probability that the true median lies between the sorted values `drop` from either end."""
    return float(1 - 2 * sum(math.comb(n, k) for k in range(drop + 1)) / 2**n)
