"""Prices of what a model reads and computes on a device, fitted to measurements of probes: seconds and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .limits import DECODE, MEMORY, TTFT

Floats = np.ndarray[Any, np.dtype[np.float64]]

MEASURED = (DECODE, TTFT, MEMORY)
"""What the model predicts. Decoding is fitted as seconds for a token."""


@dataclass(frozen=True)
class CostModel:
    """Fitted prices.

    Args:
        prices: For each of `MEASURED` the price of each feature (see `search.cost_model.features`).
        errors: For each the largest relative error on probes that were not fitted; None where there were none.
    """

    prices: Mapping[str, Mapping[str, float]]
    errors: Mapping[str, float | None]

    def predict(self, found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Return the figures of a file: tokens per second, seconds to the first token, bytes of memory.

        Args:
            found: Its features.

        Raises:
            KeyError: It has a type that no probe had.
        """
        totals = {
            metric: sum(self.prices[metric][name] * value for name, value in found[metric].items())
            for metric in self.prices
        }
        return {metric: 1 / value if metric == DECODE else value for metric, value in totals.items()}


@dataclass(frozen=True)
class Probe:
    """What was measured of one file.

    Args:
        name: What it is.
        features: Its features.
        figures: Tokens per second, seconds to the first token and bytes of memory; what the system does not report is
            missing.
        fitted: Whether the prices are fitted to it; otherwise it says how far they are off.
    """

    name: str
    features: Mapping[str, Mapping[str, float]]
    figures: Mapping[str, float]
    fitted: bool = True


def attention(sizes: Mapping[str, int], prompt: int, new_tokens: int) -> dict[str, float]:
    """Return how often heads read a value of the KV cache, for a decoded token and for a prompt.

    Args:
        sizes: The model's sizes, as `Binding.resized` gives them.
        prompt: Tokens of the prompt.
        new_tokens: Tokens that are decoded after it.
    """
    heads = float(sizes["layers"]) * sizes["heads"] * sizes["head_dim"]
    return {DECODE: heads * (prompt + new_tokens / 2), TTFT: heads * prompt**2}


def fit(probes: Sequence[Probe]) -> CostModel:
    """Fit the prices: non-negative, with the least sum of squared relative errors.

    Args:
        probes: What was measured.
    """
    prices: dict[str, dict[str, float]] = {}
    errors: dict[str, float | None] = {}
    for metric in MEASURED:
        fitted = [probe for probe in probes if probe.fitted and metric in probe.figures]
        names = list(dict.fromkeys(name for probe in fitted for name in probe.features[metric]))
        table = np.array([[probe.features[metric].get(name, 0.0) for name in names] for probe in fitted])
        if not len(fitted):
            continue
        values = np.array([_seconds(metric, probe.figures[metric]) for probe in fitted])
        found = non_negative_least_squares(table / values[:, None], np.ones(len(values)))
        prices[metric] = dict(zip(names, found.tolist(), strict=True))
        away = []
        for probe in probes:
            if not probe.fitted and metric in probe.figures:
                total = sum(prices[metric].get(name, 0.0) * value for name, value in probe.features[metric].items())
                away.append(abs(total / _seconds(metric, probe.figures[metric]) - 1))
        errors[metric] = max(away) if away else None
    return CostModel(prices, errors)


def _seconds(metric: str, figure: float) -> float:
    return 1 / figure if metric == DECODE else figure


def non_negative_least_squares(table: Floats, values: Floats) -> Floats:
    """Return the non-negative coefficients with the least sum of squares, by coordinate descent.

    A trace of ridge makes the answer unique where columns are collinear, and shares the price among them.

    Args:
        table: One row for each observation, one column for each coefficient.
        values: The observations.
    """
    scale = np.sqrt((table**2).sum(0))
    scale[scale == 0] = 1.0
    columns = table / scale
    gram, target = columns.T @ columns + 1e-6 * np.eye(columns.shape[1]), columns.T @ values
    found = np.zeros(columns.shape[1])
    for _ in range(10_000):
        before = found.copy()
        for number in range(len(found)):
            rest = target[number] - gram[number] @ found + gram[number, number] * found[number]
            found[number] = max(0.0, rest / gram[number, number])
        if np.abs(found - before).max() < 1e-12:
            break
    result: Floats = found / scale
    return result
