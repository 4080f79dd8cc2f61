"""Base and shrunk model in llama.cpp: fresh processes in every round, and turns in the order A B B A at every prompt.

In a round each model has its own process until the round ends: one model answers a prompt, then the other twice, then
the first again, so that a machine that is slow for some seconds slows both alike. Where both do not fit in memory,
each answers alone, and a note says so. The next round starts with the other model, in new processes. The difference
between the base's two turns shows how much the base differs from itself. Ratios are tested as in PyTorch
(`evaluation.timing`).

Loading is timed without any generation, once with the file in the system's cache and once without. Each timed process
first answers a short prompt that does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from statistics import mean

from ..core.memory import free_memory
from ..core.progress import progress_bar
from ..errors import RequestError
from ..evaluation.fresh_process import HEADROOM
from ..evaluation.load_worker import evict, warm
from ..evaluation.timing import compare_timings, in_turn
from ..report.measurement import Measurement, SpeedComparison, median_measurement
from .gguf_file import GgufFile
from .worker_process import MARGIN, PROCESS_BYTES, Process, Start, WorkerProcess

_TIMED = ("model_load_seconds", "time_to_first_token_seconds", "decode_tokens_per_second")
"""What is tested. Prefill follows from the time to the first token, and sizes need no test."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is timed.

    Args:
        threads: Threads for llama.cpp.
        lengths: Prompt lengths in tokens; decoding is timed after each. Two by default: each further one takes time
            and statistical power from the others.
        new_tokens: Tokens decoded after each prompt and its first new token.
        rounds: Pairs of processes. With the default lengths the test needs at least eleven to find a difference; with
            16, the default, one of them may disagree with the others.
    """

    threads: int
    lengths: tuple[int, ...] = (64, 256)
    new_tokens: int = 32
    rounds: int = 16

    def __post_init__(self) -> None:
        numbers = (self.threads, *self.lengths, self.new_tokens, self.rounds)
        if not self.lengths or min(numbers) < 1:
            raise RequestError("threads, prompt lengths, new tokens and rounds must be whole numbers of at least 1")


def fitting_lengths(requested: tuple[int, ...] | None, new_tokens: int, context: int | None) -> tuple[int, ...]:
    """Return the prompt lengths to time: the requested ones, or the default ones that fit the context.

    Args:
        requested: Requested lengths, or None for the default ones.
        new_tokens: Tokens decoded after each.
        context: The model's longest context in tokens; None when that is not known.

    Raises:
        RequestError: A requested length, or every default one, does not fit.
    """
    lengths = requested or BenchmarkSettings(1).lengths
    most = max(lengths) if context is None else context - new_tokens - MARGIN
    fits = tuple(length for length in lengths if length <= most)
    if (requested and fits != requested) or not fits:
        raise RequestError(
            f"a prompt of {max(lengths)} tokens with {new_tokens} new ones does not fit the model's {context}; "
            f"the longest prompt that fits has {max(most, 0)}"
        )
    return fits


_COLD = ", cold file cache"

Samples = dict[tuple[str, str], list[float]]
"""Metric and setting to one value for each round, or for each of its turns."""

Rounds = Mapping[tuple[str, str], Sequence[Sequence[float]]]
"""Metric and setting to the turns of each round."""


@dataclass(frozen=True)
class BenchmarkResult:
    """The measurements of a benchmark.

    Args:
        measurements: Every figure by model, `base` and `shrunk`.
        build: Version of llama.cpp and the processor instructions that it used.
        notes: What could not be measured, and why, a line each.
    """

    measurements: Mapping[str, tuple[Measurement, ...]]
    build: str
    notes: tuple[str, ...] = field(default_factory=tuple)


def run_benchmark(
    models: Mapping[str, GgufFile],
    settings: BenchmarkSettings,
    *,
    start: Start = WorkerProcess,
) -> BenchmarkResult:
    """Measure one model, or two in turn.

    Args:
        models: `shrunk`, and `base` before it where there is one; of the same quantisation.
        settings: What is timed.
        start: Starts one process.

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
    needed = sum(HEADROOM * model.nbytes + PROCESS_BYTES for model in models.values())
    free = free_memory()
    together = len(models) == 1 or needed <= free

    def add(name: str, metric: str, where: str, value: float) -> None:
        samples[name].setdefault((metric, f"llama.cpp {models[name].quantization}{where}"), []).append(value)

    with progress_bar("fresh processes, in turn", settings.rounds * len(models)) as advance:
        for number in range(settings.rounds):
            order = list(in_turn(models, number))
            for name in order:
                cold = cold and evict([models[name].path])
                if cold:
                    with start({**request, "model": str(models[name].path), "lengths": []}) as process:
                        add(name, "model_load_seconds", _COLD, process.first["load_seconds"])
            for group in [order] if together else [[name] for name in order]:
                with ExitStack() as stack:
                    processes = {}
                    for name in group:
                        warm([models[name].path])
                        job = {**request, "model": str(models[name].path), "lengths": list(settings.lengths)}
                        processes[name] = process = stack.enter_context(start(job))
                        build = process.first["build"]
                        add(name, "model_load_seconds", ", warm file cache", process.first["load_seconds"])
                    for measured in _turns(processes, group, settings.lengths):
                        add(*measured)
            advance(len(order))
    notes = []
    if not together:
        notes.append(
            f"both models at once need {needed / 2**30:.1f} GiB and {free / 2**30:.1f} were free, so each answered "
            "alone, one after the other: their ratio is less certain"
        )
    if not cold:
        notes.append("the system does not drop the file from its cache, so loading from a cold cache was not measured")
        for found_samples in samples.values():
            for key in [key for key in found_samples if key[1].endswith(_COLD)]:
                del found_samples[key]
    if not any(metric == "peak_memory_bytes" for metric, _ in samples["shrunk"]):
        notes.append("this system does not report a process's peak memory, so it was not measured")
    compared = (
        _compare(samples["base"], samples["shrunk"], settings.rounds, together=together) if "base" in models else {}
    )
    measurements = {name: _summary(models[name], found, settings, build, together) for name, found in samples.items()}
    measurements["shrunk"] = tuple(
        found.with_versus_base(compared[found.metric, found.dataset])
        if (found.metric, found.dataset) in compared
        else found
        for found in measurements["shrunk"]
    )
    return BenchmarkResult(measurements, build, tuple(notes))


def _turns(
    processes: Mapping[str, Process], order: Sequence[str], lengths: Sequence[int]
) -> Iterator[tuple[str, str, str, float]]:
    """Let loaded models take their turns; yield name, metric, setting and value of every measurement."""
    peaks = {}
    for length in lengths:
        where = f", prompt {length}"
        for name in (*order, *order[::-1]):
            found = processes[name].ask({"length": length})
            yield name, "time_to_first_token_seconds", where, found["first"]
            yield name, "prefill_tokens_per_second", where, length / found["first"]
            yield name, "decode_tokens_per_second", where, found["decode"]
            peaks[name] = found["peak_memory_bytes"]
    for name, peak in peaks.items():
        if peak is not None:
            yield name, "peak_memory_bytes", "", float(peak)


def _compare(base: Samples, shrunk: Samples, rounds: int, *, together: bool) -> dict[tuple[str, str], SpeedComparison]:
    """Return how the shrunk model's timings compare with the base's."""
    old, new = (
        {key: _by_round(values, rounds) for key, values in of.items() if key[0] in _TIMED} for of in (base, shrunk)
    )
    result = compare_rounds(old, new, together=together)
    for (metric, dataset), found in list(result.items()):
        if metric == "time_to_first_token_seconds":
            result["prefill_tokens_per_second", dataset] = found.inverted
    return result


def compare_rounds(base: Rounds, shrunk: Rounds, *, together: bool = True) -> dict[tuple[str, str], SpeedComparison]:
    """Return how the shrunk model's timings compare with the base's, all as one family.

    How much the base differs from itself is measured over the time between the two models: a turn where both were in
    memory together, else a process.

    Args:
        base: The base's timings.
        shrunk: Those of the shrunk model, of the same settings and as many rounds.
        together: Whether two turns of a round were in the order A B B A.
    """
    timings = []
    for key in base:
        sign = 1 if key[0].endswith("_per_second") else -1
        old, new = ([[sign * math.log(value) for value in turns] for turns in of[key]] for of in (base, shrunk))
        if together and all(len(turns) > 1 for turns in old):
            itself = [first - second for first, second in old]
        else:
            # In A B B A the base's two processes are a round apart; an odd last round has no partner.
            itself = [mean(old[i]) - mean(old[i + 1]) for i in range(0, len(old) - 1, 2)] or [0.0]
        timings.append(([mean(b) - mean(a) for a, b in zip(old, new, strict=True)], itself))
    compared = zip(base, compare_timings(timings), strict=True)
    return {key: found.inverted if key[0].endswith("_seconds") else found for key, found in compared}


def _by_round(values: Sequence[float], rounds: int) -> list[Sequence[float]]:
    """Return the values of each round, its turns together."""
    turns = len(values) // rounds
    return [values[i * turns : (i + 1) * turns] for i in range(rounds)]


def _summary(
    file: GgufFile, samples: Samples, settings: BenchmarkSettings, build: str, together: bool
) -> tuple[Measurement, ...]:
    conditions = {**asdict(settings), "runtime": "llama.cpp", "build": build, "quantization": file.quantization}
    conditions["together"] = together
    whole = Measurement("file_bytes", f"llama.cpp {file.quantization}", float(file.nbytes), None, 1, conditions)
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
        measurements.append(median_measurement(metric, dataset, values, conditions, n=settings.rounds))
    return tuple(measurements)
