"""Base and shrunk model in llama.cpp: every measurement in a fresh process, the two in turn, A B B A.

Neighbours in time are a round; that the base is measured twice in a row, A B B A A B B A, says what it differs from
itself by. Ratios are judged as PyTorch's are (`evaluation.timing`).

Loading is timed without any generation, once with the file in the system's cache and once without it. Each timed
process answers one short prompt first that does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..artifacts import Measurement, median_measurement
from ..errors import RequestError
from ..evaluation.load_worker import evict, warm
from ..evaluation.timing import compare_timings, in_turn
from ..progress import progress_bar
from .files import GgufFile
from .process import run_worker

_TIMED = ("model_load_seconds", "time_to_first_token_seconds", "decode_tokens_per_second")
"""What is compared. Prefill is time to first token in other words, and sizes need no test."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is timed.

    Args:
        threads: Threads that llama.cpp computes with.
        lengths: Prompts to time, in tokens; decoding is timed behind each. Two by default: every one more takes rounds
            from the others, in time and in what the test can tell.
        new_tokens: Tokens decoded behind each prompt, after the first.
        rounds: Pairs of processes; eleven are the fewest that can tell with the default lengths. 24 by default: a
            round of fresh processes differs by a tenth from the next, and then 20 of 24 have to agree.
    """

    threads: int
    lengths: tuple[int, ...] = (64, 256)
    new_tokens: int = 32
    rounds: int = 24

    def __post_init__(self) -> None:
        numbers = (self.threads, *self.lengths, self.new_tokens, self.rounds)
        if not self.lengths or min(numbers) < 1:
            raise RequestError("threads, prompt lengths, new tokens and rounds must be whole numbers of at least 1")


MARGIN = 8
"""Tokens that a context has beyond the prompt and its answer."""


def fitting_lengths(asked: tuple[int, ...] | None, new_tokens: int, context: int | None) -> tuple[int, ...]:
    """Return the prompt lengths to time: those asked for, or of the default ones those that a model can read.

    Args:
        asked: Lengths that were asked for, or None.
        new_tokens: Tokens decoded behind each.
        context: Tokens that the model reads at most, or None when that is not known.

    Raises:
        RequestError: One that was asked for does not fit.
    """
    lengths = asked or BenchmarkSettings(1).lengths
    most = max(lengths) if context is None else context - new_tokens - MARGIN
    fits = tuple(length for length in lengths if length <= most)
    if (asked and fits != asked) or not fits:
        raise RequestError(
            f"a prompt of {max(lengths)} tokens with {new_tokens} new ones does not fit the model's {context}; "
            f"the longest prompt that does has {max(most, 0)}"
        )
    return fits


Samples = dict[tuple[str, str], list[float]]
"""What was measured and under which setting, to one value for each round."""


@dataclass(frozen=True)
class EdgeResult:
    """What came of a benchmark.

    Args:
        measurements: By model, `base` and `shrunk`: every figure.
        build: Which llama.cpp it was.
        notes: What could not be measured here, and why.
    """

    measurements: Mapping[str, tuple[Measurement, ...]]
    build: str
    notes: tuple[str, ...] = field(default_factory=tuple)


def run_benchmark(
    models: Mapping[str, GgufFile],
    settings: BenchmarkSettings,
    *,
    run: Callable[[Mapping[str, Any]], dict[str, Any]] = run_worker,
) -> EdgeResult:
    """Measure one model, or two in turn.

    Args:
        models: `shrunk`, and `base` before it where there is one; of the same quantisation.
        settings: What is timed.
        run: Runs one process.

    Raises:
        SourceError: llama.cpp cannot run one of them.
    """
    vocabulary = min(model.vocabulary for model in models.values())
    request = {
        "task": "measure",
        "threads": settings.threads,
        "new_tokens": settings.new_tokens,
        "vocabulary": vocabulary,
        "context": max(16, *settings.lengths) + settings.new_tokens + MARGIN,
    }
    samples: dict[str, Samples] = {name: {} for name in models}
    cold, build = True, ""
    with progress_bar("fresh processes, in turn", settings.rounds * len(models)) as advance:
        for number in range(settings.rounds):
            for name in in_turn(models, number):
                file = models[name]
                label = f"llama.cpp {file.quantization}"
                load_only = {**request, "model": str(file.path), "lengths": []}
                cold = cold and evict([file.path])
                if cold:
                    seconds = run(load_only)["load_seconds"]
                    _add(samples[name], "model_load_seconds", f"{label}, cold file cache", seconds)
                warm([file.path])
                found = run({**load_only, "lengths": list(settings.lengths)})
                build = found["build"]
                _add(samples[name], "model_load_seconds", f"{label}, warm file cache", found["load_seconds"])
                for length in settings.lengths:
                    where, first = f"{label}, prompt {length}", found["first"][str(length)]
                    _add(samples[name], "time_to_first_token_seconds", where, first)
                    _add(samples[name], "prefill_tokens_per_second", where, length / first)
                    _add(samples[name], "decode_tokens_per_second", where, found["decode"][str(length)])
                if found["peak_memory_bytes"] is not None:
                    _add(samples[name], "peak_memory_bytes", label, float(found["peak_memory_bytes"]))
                advance(1)
    notes = []
    if not cold:
        notes.append("the system keeps the file in its cache here, so loading from a cold cache was not measured")
        for found_samples in samples.values():
            for key in [key for key in found_samples if key[1].endswith("cold file cache")]:
                del found_samples[key]
    if not any(metric == "peak_memory_bytes" for metric, _ in samples["shrunk"]):
        notes.append("this system does not tell a process's peak memory, so it was not measured")
    compared = _compare(samples["base"], samples["shrunk"]) if "base" in models else {}
    measurements = {name: _summary(models[name], found, settings, build) for name, found in samples.items()}
    measurements["shrunk"] = tuple(
        replace(found, settings={**found.settings, "versus_base": compared[found.metric, found.dataset]})
        if (found.metric, found.dataset) in compared
        else found
        for found in measurements["shrunk"]
    )
    return EdgeResult(measurements, build, tuple(notes))


def _add(samples: Samples, metric: str, dataset: str, value: float) -> None:
    samples.setdefault((metric, dataset), []).append(value)


def _compare(base: Samples, shrunk: Samples) -> dict[tuple[str, str], dict[str, Any]]:
    """Return how the shrunk model's timings compare with the base's, each as a report has it."""
    keys = [key for key in base if key[0] in _TIMED]
    timings = []
    for key in keys:
        sign = 1 if key[0].endswith("_per_second") else -1
        old, new = ([sign * math.log(value) for value in values] for values in (base[key], shrunk[key]))
        # In A B B A the base's two turns are a round apart; a last round without its other half has none.
        own = [old[i] - old[i + 1] for i in range(0, len(old) - 1, 2)] or [0.0]
        timings.append(([b - a for a, b in zip(old, new, strict=True)], own))
    result = {}
    for (metric, dataset), found in zip(keys, compare_timings(timings), strict=True):
        result[metric, dataset] = (found.inverted if metric.endswith("_seconds") else found).to_dict()
        if metric == "time_to_first_token_seconds":
            result["prefill_tokens_per_second", dataset] = found.to_dict()
    return result


def _summary(file: GgufFile, samples: Samples, settings: BenchmarkSettings, build: str) -> tuple[Measurement, ...]:
    asked = {**asdict(settings), "runtime": "llama.cpp", "build": build, "quantization": file.quantization}
    whole = Measurement("file_bytes", f"llama.cpp {file.quantization}", float(file.nbytes), None, 1, asked)
    measurements = [whole]
    order = (
        "model_load_seconds",
        "time_to_first_token_seconds",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    )
    for (metric, dataset), values in sorted(
        samples.items(), key=lambda item: order.index(item[0][0]) if item[0][0] in order else len(order)
    ):
        measurements.append(median_measurement(metric, dataset, values, asked))
    return tuple(measurements)
