"""What a shape costs in llama.cpp: seconds and memory as linear functions of what is read and computed.

Decoding a token reads every weight once, so its time is a sum over the types of matrices of their weights, each at its
type's price, with an amount for each layer and for each token, and attention, which each head pays for every token in
the KV cache. Reading a prompt multiplies every weight but the head's with every token. Memory is that of the weights,
which runtimes partly hold in a second layout, of the KV cache, and of buffers. The prices are fitted to
measurements of probe files with random weights: what is computed does not depend on the weights' values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..edge.gguf_quantizations import EMBEDDING, HEAD
from ..planning.limits import DECODE, MEMORY, TTFT
from .template import Template, TemplateTensor
from .turns import Workload

Floats = np.ndarray[Any, np.dtype[np.float64]]

MEASURED = (DECODE, TTFT, MEMORY)
"""What the model predicts. Decoding is fitted as seconds for a token."""


@dataclass(frozen=True)
class CostModel:
    """Fitted prices.

    Args:
        prices: For each of `MEASURED` the price of each feature (see `features`).
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


Tensors = Sequence[tuple[TemplateTensor, tuple[int, ...]]]


def kv_bytes(template: Template, shape: Mapping[str, int], context: int) -> int:
    """Return the bytes of the KV cache in 16 bits.

    Args:
        template: The base's file.
        shape: The sizes by config key.
        context: Tokens that it has room for. Layers with a sliding window may need fewer.
    """
    sizes = template.binding.resized(shape)
    return 2 * 2 * sizes["layers"] * sizes["kv"] * _head_dim(sizes) * context


def _head_dim(sizes: Mapping[str, int]) -> int:
    return sizes.get("head_dim", sizes["hidden"] // sizes["heads"])


def features(
    template: Template, shape: Mapping[str, int], types: Mapping[str, str], workload: Workload, tensors: Tensors
) -> dict[str, dict[str, float]]:
    """Return what each figure of a file is a linear function of.

    Args:
        template: The base's file.
        shape: The sizes by config key.
        types: Name of the type of each matrix, by its name in the file.
        workload: What is timed.
        tensors: What `Template.in_shape` gives for the shape.
    """
    sizes = template.binding.resized(shape)
    layers = float(sizes["layers"])
    heads = layers * sizes["heads"] * _head_dim(sizes)
    tied = not any(tensor.name == HEAD for tensor, _ in tensors)
    head = EMBEDDING if tied else HEAD
    held = workload.prompt + workload.new_tokens / 2
    decode: dict[str, float] = {"once": 1.0, "layers": layers, "attention": heads * held}
    prompt: dict[str, float] = {"once": 1.0, "layers": layers * workload.prompt}
    prompt["attention"] = heads * workload.prompt**2
    memory: dict[str, float] = {"once": 1.0, "kv": float(kv_bytes(template, shape, workload.context))}
    for tensor, dims in tensors:
        if not tensor.is_matrix:
            continue
        name, weights = types.get(tensor.name, tensor.type), float(prod(dims))
        memory[name] = memory.get(name, 0.0) + weights
        if tensor.name == EMBEDDING and not tied:
            continue  # one of its rows is read for a token
        decode[name] = decode.get(name, 0.0) + weights
        if tensor.name != head:
            prompt[name] = prompt.get(name, 0.0) + weights * workload.prompt
        else:
            prompt["head"] = weights
            memory["rows"] = float(dims[-1])
    return {DECODE: decode, TTFT: prompt, MEMORY: memory}


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
        model = CostModel(prices, {})
        away = []
        for probe in probes:
            if not probe.fitted and metric in probe.figures:
                total = sum(
                    model.prices[metric].get(name, 0.0) * value for name, value in probe.features[metric].items()
                )
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
