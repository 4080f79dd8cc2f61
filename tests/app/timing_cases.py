"""Writes timing_cases.json: timings, and what Python's rule says of them. The page's rule is tested against it.

python -m tests.app.timing_cases
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from optimum_ishrink.evaluation.timing import LEAST, compare_timings

FILE = Path(__file__).with_suffix(".json")

Timing = tuple[list[float], list[float]]
"""Logs of the speed ratios, and of the base's two turns; a value for each round."""


def families() -> Iterator[tuple[str, list[Timing]]]:
    """Yield what is judged: a name, and the timings of one run."""
    quiet = [0.004, -0.003, 0.001, -0.006, 0.002, 0.005, -0.001, 0.0035, -0.0045, 0.0025, -0.002, 0.006, -0.0015]
    for rounds in (1, 2, 3, 7, 8, 9, 13):
        yield f"{rounds} rounds that agree", [([0.1 + i / 100 for i in range(rounds)], quiet[:rounds])]
    yield "slower in every round", [([-0.2 - i / 90 for i in range(13)], quiet)]
    yield "two timings need nine rounds", [([0.3] * 8, quiet[:8])] * 2
    yield "two timings of nine rounds", [([0.3] * 9, quiet[:9])] * 2
    for wrong in range(7):
        ratios = [0.1 + i / 100 for i in range(13 - wrong)] + [-0.05 - i / 100 for i in range(wrong)]
        yield f"{wrong} of 13 rounds disagree", [(ratios, quiet)]
    yield "rounds without a difference", [([0.0] * 13, quiet)]
    yield "some rounds without a difference", [([0.0, -0.0, *[0.06] * 11], quiet)]
    yield "the base never differs from itself", [([0.05] * 12, [0.0] * 12)]
    yield "the base differs as much from itself", [([0.1] * 13, [0.3, -0.3] * 6 + [0.2])]
    yield "a lasting difference between the base's turns", [([0.05] * 13, [0.05] * 13), ([0.0501] * 13, [0.05] * 13)]
    yield "just below the least difference", [([math.log1p(LEAST - 1e-6)] * 16, [0.001] * 16)]
    yield "just above the least difference", [([math.log1p(LEAST + 1e-6)] * 16, [0.001] * 16)]
    yield "equal ratios", [([0.03, 0.03, 0.04, 0.04] * 4, [0.01, -0.01, 0.02, 0.02] * 4)]
    yield "fewer differences of the base than rounds", [([0.2] * 16, [0.02, -0.01, 0.03, 0.0])]
    draw = random.Random(0)
    for size, rounds in ((1, 8), (2, 13), (4, 16), (6, 16), (8, 15), (6, 21), (3, 64)):
        for effect in (0.0, 0.02, 0.05, 0.3):
            timings = [
                (
                    [round(draw.gauss(effect * (1 - number / size), 0.04), 5) for _ in range(rounds)],
                    [round(draw.gauss(0.0, 0.04 * math.sqrt(2)), 5) for _ in range(rounds)],
                )
                for number in range(size)
            ]
            yield f"{size} timings of {rounds} rounds, up to {effect:.0%} faster", timings


def case(name: str, timings: list[Timing]) -> dict[str, Any]:
    """Return one case, as the file holds it.

    Args:
        name: Its name.
        timings: The timings of one run.
    """
    found = [
        {
            "ratio": each.ratio,
            "interval": list(each.interval),
            "coverage": each.coverage,
            "p_value": each.p_value,
            "adjusted_p_value": each.adjusted_p_value,
            "spread": each.spread,
            "verdict": each.verdict,
        }
        for each in compare_timings(timings)
    ]
    rows = []
    for (ratios, own), comparison in zip(timings, found, strict=True):
        low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [*ratios] * 3
        rows.append(
            {
                "ratios": ratios,
                "own": own,
                "median": median(ratios),
                "quartiles": [low, high],
                "comparison": comparison,
            }
        )
    return {"name": name, "timings": rows}


def cases() -> list[dict[str, Any]]:
    """Return all cases."""
    return [case(name, timings) for name, timings in families()]


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(each) for each in cases())
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
