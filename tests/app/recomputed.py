"""What Python's rule says of a device report's samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from optimum_ishrink.evaluation.timing import compare_timings


def recomputed(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the comparisons of a report, made anew from its samples.

    Args:
        report: The report.
    """
    by_role: dict[str, dict[tuple[str, str], Any]] = {"base": {}, "shrunk": {}}
    for sample in report["samples"]:
        if sample["metric"] != "peak_memory_bytes":
            by_role[sample["role"]][sample["metric"], sample["setting"]] = sample["values"]
    keys = [key for key in by_role["base"] if key in by_role["shrunk"]]
    timings = []
    for key in keys:
        sign = 1 if key[0].endswith("_per_second") else -1
        old, new = (_logs(by_role[role][key], sign) for role in ("base", "shrunk"))
        ratios = [mean(b) - mean(a) for a, b in zip(old, new, strict=True)]
        if all(len(turns) == 2 for turns in old):
            itself = [first - second for first, second in old]
        else:
            itself = [mean(old[i]) - mean(old[i + 1]) for i in range(0, len(old) - 1, 2)] or [0.0]
        timings.append((ratios, itself))
    found = []
    for (metric, setting), comparison in zip(keys, compare_timings(timings), strict=True):
        turned = comparison.inverted if metric.endswith("_seconds") else comparison
        found.append(
            {
                "metric": metric,
                "setting": setting,
                "ratio": turned.ratio,
                "interval": list(turned.interval),
                "coverage": turned.coverage,
                "p_value": turned.p_value,
                "adjusted_p_value": turned.adjusted_p_value,
                "spread": turned.spread,
                "verdict": turned.verdict,
            }
        )
    return found


def _logs(rounds: Sequence[Sequence[float]], sign: int) -> list[list[float]]:
    return [[sign * math.log(value) for value in turns] for turns in rounds]
