"""How much of each figure the shrunk model retains, and the verdict on it.

The verdict, from 95% intervals over paired answers of the two models:

- `worse`: the shrunk model's figure is worse than the base's, by more than chance. Where answers are right or wrong:
  p < 0.05 in McNemar's exact test. Otherwise: the whole interval of the ratio lies on the worse side of 1.
- `no worse`: not `worse`, and the interval ends no more than 5% on the worse side of 1: with this many questions, a
  larger loss would have shown.
- `too few questions to tell` (for a text, `too few windows to tell`): neither. Figures other than right or wrong
  need at least ten questions for any other verdict.

Figures that may be below zero, such as log-likelihoods, have no ratio: there the interval of the difference takes its
place, and 5% of the base's figure is the margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..report.measurement import Comparison
from .paired import CONFIDENCE, RESAMPLES, PairedInterval, Stratum, mcnemar, paired_interval
from .text_quality import WindowFigures
from .text_statistics import LARGEST_LOSS

MARGIN = 0.05
"""Share of the base's figure that may be lost and still be called no worse."""

SIGNIFICANCE = 0.05
_FEWEST = 10
"""Minimum number of observations for a bootstrap of answers other than right and wrong."""


def compare(
    metric: str,
    dataset: str,
    strata: Sequence[Stratum],
    *,
    higher_is_better: bool = True,
    observations: str = "questions",
    transform: Any = None,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same questions.

    Args:
        metric: The metric.
        dataset: The task or text.
        strata: Both models' values, question by question.
        higher_is_better: Whether a higher figure is the better one.
        observations: What a value stands for: `questions` or `windows`.
        transform: Turns the mean of the values into the figure; the mean itself when None.
        seed: Seed of the bootstrap.
    """
    found = paired_interval(strata, seed=seed, **({} if transform is None else {"transform": transform}))
    count = sum(len(stratum.base) for stratum in strata)
    base_only = shrunk_only = p_value = None
    if observations == "questions" and all(stratum.is_binary for stratum in strata):
        pairs = [pair for stratum in strata for pair in zip(stratum.base, stratum.shrunk, strict=True)]
        base_only, shrunk_only = pairs.count((1, 0)), pairs.count((0, 1))
        p_value = mcnemar(base_only, shrunk_only)
    return Comparison(
        metric,
        dataset,
        count,
        found.ratio,
        found.ratio_low,
        found.ratio_high,
        found.difference,
        found.difference_low,
        found.difference_high,
        higher_is_better,
        base_only,
        shrunk_only,
        p_value,
        verdict(found, count, p_value, higher_is_better=higher_is_better, observations=observations),
        {
            "observations": observations,
            "interval": "paired percentile bootstrap",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": seed,
            "test": None if p_value is None else "McNemar, exact",
            "margin": MARGIN,
        },
    )


def verdict(
    found: PairedInterval, count: int, p_value: float | None, *, higher_is_better: bool, observations: str
) -> str:
    """Return the verdict on a comparison, by the rule in the module's docstring.

    Args:
        found: The intervals.
        count: Observations.
        p_value: p-value of McNemar's exact test; None where answers are not right or wrong.
        higher_is_better: Whether a higher figure is the better one.
        observations: `questions` or `windows`.
    """
    inconclusive = f"too few {observations} to tell"
    if p_value is not None:
        lower_quality = found.difference < 0 if higher_is_better else found.difference > 0
        if lower_quality and p_value < SIGNIFICANCE:
            return "worse"
    elif count < _FEWEST:
        return inconclusive
    if found.ratio is None:
        ends = found.difference_low, found.difference_high
        lost, gained = ends if higher_is_better else (-ends[1], -ends[0])
        if p_value is None and gained < 0:
            return "worse"
        return "no worse" if lost >= -MARGIN * abs(found.base) else inconclusive
    low, high = found.ratio_low, found.ratio_high
    # The retained share at worst and at best, so that higher is better whatever the metric.
    worst, best = (low, high) if higher_is_better else (_inverse(high), _inverse(low))
    if p_value is None and best is not None and best < 1:
        return "worse"
    return "no worse" if worst is not None and worst >= 1 - MARGIN else inconclusive


def _inverse(value: float | None) -> float | None:
    return None if value is None or value == 0 else 1 / value


def compare_text(
    base: WindowFigures,
    shrunk: WindowFigures,
    label: str,
    *,
    per_token: bool,
    counts_tokens: bool = False,
    seed: int = 0,
) -> list[Comparison]:
    """Compare two models on the windows of one text.

    Args:
        base: Figures of the base.
        shrunk: Figures of the shrunk model.
        label: Name of the text.
        per_token: Compare the perplexity too, which is not comparable between tokenizers. It is left out where it is
            too large for a number in any window.
        counts_tokens: Compare tokens per byte too, which differ where a vocabulary was made smaller.
        seed: Seed of the bootstrap.
    """
    how: dict[str, Any] = {"higher_is_better": False, "observations": "windows", "seed": seed}
    found = []
    if per_token:
        means = [np.array(each.nll) / np.array(each.tokens) for each in (base, shrunk)]
        if max(each.max() for each in means) < LARGEST_LOSS:  # else no interval can be drawn
            stratum = Stratum(1.0, means[0].tolist(), means[1].tolist())
            found.append(compare("perplexity", label, [stratum], transform=np.exp, **how))
    size = sum(shrunk.bytes or ())
    if size:
        # Both predict the same bytes, so bits of a window over the mean bytes of one average to bits per byte.
        scale = len(shrunk.nll) / (np.log(2) * size)
        values = [(np.array(each.nll) * scale).tolist() for each in (base, shrunk)]
        found.append(compare("bits_per_byte", label, [Stratum(1.0, *values)], **how))
        if counts_tokens:
            counts = [(np.array(each.tokens) * len(each.tokens) / size).tolist() for each in (base, shrunk)]
            found.append(compare("tokens_per_byte", label, [Stratum(1.0, *counts)], **how))
    return found
