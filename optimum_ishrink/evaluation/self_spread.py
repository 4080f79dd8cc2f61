"""How far the median of a model's ratios to itself lies from one by chance: exactly, from its distribution.

Nothing is drawn at random and nothing is rounded, so that a program in another language computes the same number.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from math import comb


def self_spread(values: Sequence[float], quantile: float = 0.95) -> float:
    """Return how far the median over rounds of a model's ratio to itself deviates from zero by chance.

    The median is that of as many rounds, each drawn from all, with a random sign, because the order of a model's two
    turns is arbitrary.

    Args:
        values: Log of the ratio of the model's two turns, one per round.
        quantile: Share of such medians within the spread, above 0.

    Returns:
        The smallest size that at least this share of them does not exceed.
    """
    draws = _Draws(values)
    share, whole = quantile.as_integer_ratio()
    outside = (whole - share) * draws.ways

    def reached(twice: float) -> bool:
        """Whether few enough medians exceed a size: there are as many below its negative."""
        return 2 * whole * draws.above(twice) <= outside

    sizes = [2 * value for value in draws.support]
    at = bisect_left(sizes, True, key=reached)
    if len(values) % 2 == 0 and at > 0:  # the median may lie between two values
        low, high = sizes[at - 1], sizes[at]
        sizes = sorted({a + b for a in draws.support for b in draws.support if low < a + b <= high})
        at = bisect_left(sizes, True, key=reached)
    return abs(sizes[at] / 2)


class _Draws:
    """As many draws as there are values, each of any value with either sign; counted in equally likely ways.

    Args:
        values: The values.
    """

    def __init__(self, values: Sequence[float]) -> None:
        counts = Counter(sign * value for value in values for sign in (1, -1))
        self._n = len(values)
        self.support = sorted(counts)
        self.ways: int = (2 * self._n) ** self._n
        self._up_to = [0, *accumulate(counts[value] for value in self.support)]

    def above(self, twice: float) -> int:
        """Return in how many ways the median is above a size.

        Args:
            twice: Twice the size: half the sum of two values would be rounded where the sum is not.
        """
        n, half = self._n, self._n // 2
        middle = sum(2 * value <= twice for value in self.support)
        if n % 2:
            return self._at_most(half, middle)
        # Either the lower of the two middle draws is above the size, or half of all draws are at most the lower one,
        # and the other half so large that their sum with it is above twice the size.
        found, reach = 0, len(self.support)
        for index in range(middle):
            while reach > index and self.support[index] + self.support[reach - 1] > twice:
                reach -= 1
            lower = self._up_to[index + 1] ** half - self._up_to[index] ** half
            found += lower * (2 * n - self._up_to[reach]) ** half
        return self._at_most(half - 1, middle) + comb(n, half) * found

    def _at_most(self, most: int, number: int) -> int:
        """Return in how many ways at most some draws are among the lowest distinct values."""
        inside = self._up_to[number]
        outside = 2 * self._n - inside
        return sum(comb(self._n, k) * inside**k * outside ** (self._n - k) for k in range(most + 1))
