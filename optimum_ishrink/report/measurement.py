"""Measured numbers, comparisons of them, and samples of text that models generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, quantiles
from typing import Any

from ..core.json_codec import from_plain, to_plain
from .environment import Environment


@dataclass(frozen=True)
class SpeedComparison:
    """One timing of two models, round by round.

    Args:
        ratio: Median over rounds of the speed ratio to the first model; above 1 is faster.
        interval: Confidence interval of that median, from order statistics of the rounds; no distribution is assumed.
        coverage: Its exact confidence; with few rounds it is below the requested one.
        p_value: Two-sided exact sign test of the rounds.
        adjusted_p_value: The same, after Holm's procedure over all timings of the run.
        spread: How much the first model differs from itself, as a share: 95% of such medians lie within it.
        verdict: `faster`, `slower`, `no difference`, or `too few rounds to tell`.
        round_ratios: The ratio in each round.
        self_ratios: The ratio of the first model's two turns, in each round.
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
    def inverted(self) -> SpeedComparison:
        """The same comparison for durations instead of speeds: below 1 is faster."""
        low, high = self.interval
        return replace(
            self,
            ratio=1 / self.ratio,
            interval=(1 / high, 1 / low),
            round_ratios=tuple(1 / ratio for ratio in self.round_ratios),
            self_ratios=tuple(1 / ratio for ratio in self.self_ratios),
        )


_NOT_CONDITIONS = frozenset(
    {
        *("rounds", "warmup", "self_spread", "statistic", "hub_dataset", "shared", "libraries_bytes"),
        *("created", "file", "sha256", "user_agent"),
    }
)
"""Settings that describe precision, results or the origin of the data, not what was measured."""


@dataclass(frozen=True)
class Measurement:
    """One measured number.

    Args:
        metric: What was measured, such as `"perplexity"` or `"decode_tokens_per_second"`.
        dataset: What it was measured on: a text, a task, or a speed setting.
        value: The number.
        stderr: Its standard error, where one can be computed.
        n: Number of independent observations (windows, questions, rounds).
        settings: Everything needed to measure it again.
    """

    metric: str
    dataset: str
    value: float
    stderr: float | None
    n: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    # Typed access to the open settings: each name is written only here.

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Lower and upper quartile of a repeated measurement, else None."""
        found = self.settings.get("quartiles")
        return None if found is None else (found[0], found[1])

    @property
    def samples(self) -> tuple[float, ...]:
        """The values of a repeated measurement, else none."""
        return tuple(self.settings.get("samples", ()))

    @property
    def statistic(self) -> str | None:
        """How the value summarizes its samples, such as `median`; else None."""
        return self.settings.get("statistic")

    @property
    def versus_base(self) -> SpeedComparison | None:
        """Comparison of a timing with the base's, where the two models took turns; else None.

        Raises:
            SourceError: The settings hold something else under this name.
        """
        found = self.settings.get("versus_base")
        return None if found is None else from_plain(SpeedComparison, found, kind="speed comparison")

    @property
    def self_spread(self) -> float | None:
        """Run-to-run spread of a timing, as a share; None where that was not measured."""
        return self.settings.get("self_spread")

    @property
    def environment(self) -> Environment | None:
        """Where it was measured, if not in the report's environment; else None.

        Raises:
            SourceError: The settings hold something else under this name.
        """
        found = self.settings.get("environment")
        return None if found is None else from_plain(Environment, found, kind="environment")

    @property
    def runtime(self) -> str | None:
        """The runtime, such as `llama.cpp`, where it is not PyTorch; else None."""
        return self.settings.get("runtime")

    @property
    def num_fewshot(self) -> int | None:
        """Few-shot examples in the prompt of a task; None for anything else."""
        return self.settings.get("num_fewshot")

    @property
    def task_version(self) -> str | float | None:
        """The task's version; None for anything else."""
        return self.settings.get("task_version")

    @property
    def filter(self) -> str | None:
        """The filter of a task's answers; None for anything else."""
        return self.settings.get("filter")

    @property
    def hub_dataset(self) -> str | None:
        """Hub id of the data set of a task; None where its data are not from the Hub."""
        return self.settings.get("hub_dataset")

    @property
    def tokens(self) -> int | None:
        """Predicted tokens of a text; None for anything else."""
        return self.settings.get("tokens")

    @property
    def carried(self) -> bool:
        """Whether it compares with a base of more tokens, whose predictions were carried to the model's."""
        return bool(self.settings.get("carried"))

    @property
    def shared(self) -> float | None:
        """Share of a model's predicted tokens that are compared with a base of other tokens; else None."""
        return self.settings.get("shared")

    @property
    def predicted(self) -> int | None:
        """Predictions in each window, where two runtimes were compared; else None."""
        return self.settings.get("predicted")

    @property
    def candidates(self) -> int | None:
        """Tokens whose probability was compared one by one, where two runtimes were compared; else None."""
        return self.settings.get("candidates")

    @property
    def conditions(self) -> dict[str, Any]:
        """The settings that must be equal for two measurements to be comparable."""
        return {
            key: value
            for key, value in self.settings.items()
            if key not in _NOT_CONDITIONS and (value is None or isinstance(value, (str, int, float, bool)))
        }

    def with_versus_base(self, found: SpeedComparison) -> Measurement:
        """Return the measurement with its comparison with the base."""
        return replace(self, settings={**self.settings, "versus_base": to_plain(found)})

    def with_self_spread(self, share: float) -> Measurement:
        """Return the measurement with its own run-to-run spread, as a share."""
        return replace(self, settings={**self.settings, "self_spread": share})

    def with_environment(self, found: Environment) -> Measurement:
        """Return the measurement with its environment, which differs from its report's."""
        return replace(self, settings={**self.settings, "environment": to_plain(found)})


def median_measurement(
    metric: str, dataset: str, samples: Sequence[float], settings: Mapping[str, Any], n: int | None = None
) -> Measurement:
    """Return the median of repeated measurements, with the quartiles and the samples themselves.

    Args:
        metric: What was measured.
        dataset: What it was measured on.
        samples: The values, at least one.
        settings: Everything needed to measure it again.
        n: Number of independent observations; by default each sample is one.
    """
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [*samples] * 3
    facts = {**settings, "statistic": "median", "quartiles": [low, high], "samples": list(samples)}
    return Measurement(metric, dataset, median(samples), None, len(samples) if n is None else n, facts)


@dataclass(frozen=True)
class Comparison:
    """How much of a figure the shrunk model retains, measured on the same questions or windows for both models.

    Args:
        metric: The metric, as the measurements name it.
        dataset: The task or text.
        n: Questions or windows in each model's figure, the same for both.
        ratio: The shrunk model's figure over the base's; None when the base's is 0.
        ratio_low: Lower end of its 95% confidence interval; None when it has none.
        ratio_high: Upper end of it.
        difference: The shrunk model's figure minus the base's.
        difference_low: Lower end of its 95% confidence interval.
        difference_high: Upper end of it.
        higher_is_better: Whether a higher figure is the better one.
        base_only: Questions that only the base got right; None where answers are not right or wrong.
        shrunk_only: Questions that only the shrunk model got right.
        p_value: p-value of McNemar's exact test that both are right equally often; None where answers are not right or
            wrong.
        verdict: `no worse`, `worse`, or `too few questions to tell` (for a text: `too few windows to tell`).
        settings: How the interval and the verdict were computed.
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
    """Text that the models generate after one prompt.

    Args:
        prompt: The prompt, before any chat template.
        base: The base's text; None when there was no base.
        shrunk: The shrunk model's text.
        settings: How the texts were generated.
    """

    prompt: str
    base: str | None
    shrunk: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def max_new_tokens(self) -> int | None:
        """Maximum number of generated tokens; None where unknown."""
        return self.settings.get("max_new_tokens")

    @property
    def chat_template(self) -> bool:
        """Whether the prompt was a user's turn."""
        return bool(self.settings.get("chat_template"))


@dataclass(frozen=True)
class Failure:
    """A requested measurement that could not be made.

    Args:
        dataset: The task, or the group of tasks.
        reason: Why, and what to do about it, in one line.
    """

    dataset: str
    reason: str
