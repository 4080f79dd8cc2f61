"""What the stages hand to one another: frozen, and each with a file that it can be read back from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """One measured number.

    Args:
        metric: What was measured, such as `"perplexity"` or `"decode_tokens_per_second"`.
        dataset: On what: a text, a task, or a speed setting.
        value: The number.
        stderr: Its standard error, where one can be computed.
        n: How many independent observations it rests on (windows, questions, rounds).
        settings: All that is needed to measure it again.
    """

    metric: str
    dataset: str
    value: float
    stderr: float | None
    n: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def median_measurement(
    metric: str, dataset: str, samples: Sequence[float], settings: Mapping[str, Any], n: int | None = None
) -> Measurement:
    """Return the median of what was measured several times, with its quartiles and the samples themselves.

    Args:
        metric: What was measured.
        dataset: On what.
        samples: The values, at least one.
        settings: All that is needed to measure it again.
        n: How many independent observations they are; one each by default.
    """
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [*samples] * 3
    facts = {**settings, "statistic": "median", "quartiles": [low, high], "samples": list(samples)}
    return Measurement(metric, dataset, median(samples), None, len(samples) if n is None else n, facts)


@dataclass(frozen=True)
class Comparison:
    """How much of a figure the shrunk model keeps, from the same questions or windows put to both models.

    Args:
        metric: The metric, as the measurements name it.
        dataset: The task or text.
        n: Questions or windows in each model's figure; they are the same ones.
        ratio: The shrunk model's figure over the base's; None when the base's is 0.
        ratio_low: Lower end of its 95 % confidence interval; None when it has none.
        ratio_high: Upper end of it.
        difference: The shrunk model's figure less the base's.
        difference_low: Lower end of its 95 % confidence interval.
        difference_high: Upper end of it.
        higher_is_better: Whether a higher figure is the better one.
        base_only: Questions that only the base got right; None where answers are not right or wrong.
        shrunk_only: Questions that only the shrunk model got right.
        p_value: Of McNemar's exact test that both are right equally often; None where answers are not right or wrong.
        verdict: `no worse`, `worse`, or `too few questions to tell` (of a text: `too few windows to tell`).
        settings: How the interval and the verdict were come by.
    """

    metric: str
    dataset: str
    n: int
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    difference: float
    difference_low: float
    difference_high: float
    higher_is_better: bool
    base_only: int | None
    shrunk_only: int | None
    p_value: float | None
    verdict: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What the models write behind one prompt.

    Args:
        prompt: The prompt, before any chat template.
        base: The base's words; None when there was no base.
        shrunk: The shrunk model's words.
        settings: How they were generated.
    """

    prompt: str
    base: str | None
    shrunk: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """What was asked for and could not be measured.

    Args:
        dataset: The task, or the group of tasks.
        reason: Why, and what to do about it, in one line.
    """

    dataset: str
    reason: str
