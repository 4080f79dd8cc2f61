"""Speed of two models, measured in turn: time to first token, prefill and decode throughput.

Machines drift: they warm up, throttle, and share their cores and their memory bus with others. So the models take
turns at every prompt and every token, in the order A B B A: what slows the machine for longer than a token slows both
alike, and a steady drift cancels. The next round goes B A A B. That each has two turns also shows by how much a model
differs from itself.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from typing import Any

import torch

from ..core.device import synchronize
from ..core.key_value_cache import step_reader
from ..core.progress import progress_bar
from ..report.measurement import Measurement, median_measurement
from .self_spread import self_spread
from .timing import compare_timings, in_turn

Times = list[list[float]]
"""Seconds of one round, for each turn in order: `READINGS` readings of the prompt, then every token."""

READINGS = 5
"""How often the prompt is read in each turn: the median of five tolerates two disturbed readings."""


@dataclass(frozen=True)
class LatencySettings:
    """What is timed.

    Args:
        prompt_length: Tokens in the prompt; decoding continues from there, so it is also the context length.
        new_tokens: Tokens decoded one by one after the prompt, in each turn.
        rounds: Measured rounds; in each, every model has two turns.
        warmup: Discarded rounds before them: the first runs allocate memory and choose kernels.
        batch_size: Sequences at once, all of the same length.
    """

    prompt_length: int = 64
    new_tokens: int = 6
    rounds: int = 13
    warmup: int = 1
    batch_size: int = 1

    @property
    def label(self) -> str:
        """The setting's name in reports, where every setting is a separate data set."""
        return f"prompt {self.prompt_length}, decode {self.new_tokens}, batch {self.batch_size}"


@torch.inference_mode()
def time_in_turn(models: Sequence[Any], prompt: torch.Tensor, new_tokens: int) -> Times:
    """Time one round: each model in turn reads the prompt, `READINGS` times, then each in turn decodes token by token.

    Args:
        models: Loaded models in the order of their turns; a model that is listed twice has one KV cache per turn. One
            whose class keeps none reads the whole text for every token.
        prompt: Token ids, shape (batch, length).
        new_tokens: Tokens to decode greedily after the first, each reading the KV cache.

    Returns:
        For each turn: seconds to the first token, `READINGS` times, and of each of the `new_tokens` after it.
    """
    times: Times = [[] for _ in models]
    read_before: list[Any] = [None] * len(models)
    readers = [step_reader(model) for model in models]
    prompts = [prompt.to(model.device) for model in models]
    tokens = prompts
    for step in range(READINGS + new_tokens):
        if step < READINGS:
            read_before, tokens = [None] * len(models), list(prompts)
        for turn, model in enumerate(models):
            synchronize(model.device)
            start = time.perf_counter()
            output, read_before[turn] = readers[turn](tokens[turn], read_before[turn], logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
            synchronize(model.device)
            times[turn].append(time.perf_counter() - start)
            tokens[turn] = token
    return times


@contextmanager
def undisturbed(models: Mapping[str, Any]) -> Iterator[None]:
    """Keep Python's garbage collector out of the timing, and the weights of all models in memory of the same kind.

    On the CPU one checkpoint may still be memory-mapped and another not: they would not be read equally fast.

    Args:
        models: Loaded models by name.
    """
    for model in models.values():
        model.eval()
        if model.device.type == "cpu":
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data = tensor.data.clone()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def measure_latency(
    models: Mapping[str, Any],
    settings: LatencySettings | Sequence[LatencySettings],
    *,
    run: Callable[[Sequence[Any], torch.Tensor, int], Times] = time_in_turn,
) -> dict[str, tuple[Measurement, ...]]:
    """Time models in turn.

    Args:
        models: Loaded models by name. Each is compared with the first.
        settings: What is timed; several settings are timed in sequence, and tested as one family.
        run: Times one round.

    Returns:
        The measurements of each model, by its name. Their settings hold every sample; for the first model also how
        much it differs from itself (`self_spread`), for others the comparison (`versus_base`).
    """
    chosen = [settings] if isinstance(settings, LatencySettings) else list(settings)
    with (
        undisturbed(models),
        progress_bar("timing in turn", sum(each.warmup + each.rounds for each in chosen)) as advance,
    ):
        timed = [_time_rounds(models, each, run, advance) for each in chosen]
    first, *others = models
    own = [rounds.log_self_ratios(first, phase) for rounds in timed for phase in PHASES]
    parts = list(product(timed, PHASES))
    spreads = [math.expm1(self_spread(each)) for each in own]
    found = {
        first: tuple(
            measurement.with_self_spread(spread)
            for (rounds, phase), spread in zip(parts, spreads, strict=True)
            for measurement in rounds.measurements(first, phase)
        )
    }
    for name in others:
        ratios = [rounds.log_ratios(name, first, phase) for rounds, phase in parts]
        compared = compare_timings(list(zip(ratios, own, strict=True)))
        found[name] = tuple(
            measurement.with_versus_base(each.inverted if measurement.metric.endswith("_seconds") else each)
            for (rounds, phase), each in zip(parts, compared, strict=True)
            for measurement in rounds.measurements(name, phase)
        )
    return found


def _time_rounds(
    models: Mapping[str, Any],
    settings: LatencySettings,
    run: Callable[[Sequence[Any], torch.Tensor, int], Times],
    advance: Callable[[int], None],
) -> Rounds:
    names = list(models)
    vocabulary = min(model.config.get_text_config().vocab_size for model in models.values())
    shape = (settings.batch_size, settings.prompt_length)
    prompt = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))
    rounds = []
    for number in range(settings.warmup + settings.rounds):
        forward = in_turn(names, number)
        order = forward + forward[::-1]
        times = run([models[name] for name in order], prompt, settings.new_tokens)
        if number >= settings.warmup:
            turns = {name: [each for each, owner in zip(times, order, strict=True) if owner == name] for name in names}
            rounds.append({name: (both[0], both[1]) for name, both in turns.items()})
        advance(1)
    return Rounds(settings, tuple(rounds))


PHASES: Mapping[str, slice] = {"prefill": slice(0, READINGS), "decode": slice(READINGS, None)}


@dataclass(frozen=True)
class Rounds:
    """The rounds of one setting.

    Args:
        settings: What was timed.
        rounds: For each round, by the model's name, the seconds of its two turns: of each reading of the
            prompt, then of each token.
    """

    settings: LatencySettings
    rounds: tuple[dict[str, tuple[list[float], list[float]]], ...]

    def _logs(self, name: str, phase: str) -> list[tuple[list[float], list[float]]]:
        part = PHASES[phase]
        return [
            ([math.log(each) for each in turns[name][0][part]], [math.log(each) for each in turns[name][1][part]])
            for turns in self.rounds
        ]

    def log_ratios(self, name: str, first: str, phase: str) -> list[float]:
        """Return the log of a model's speed ratio to the first, in each round: the median over its tokens."""
        return [
            median((a + b - c - d) / 2 for a, b, c, d in zip(*theirs, *ours, strict=True))
            for theirs, ours in zip(self._logs(first, phase), self._logs(name, phase), strict=True)
        ]

    def log_self_ratios(self, name: str, phase: str) -> list[float]:
        """Return the same for a model's second turn relative to its first."""
        return [median(a - b for a, b in zip(*turns, strict=True)) for turns in self._logs(name, phase)]

    def measurements(self, name: str, phase: str) -> list[Measurement]:
        """Return the measurements of one phase of a model."""
        batch, length, new_tokens = (
            self.settings.batch_size,
            self.settings.prompt_length,
            self.settings.new_tokens,
        )
        part = PHASES[phase]
        combine = median if phase == "prefill" else sum
        seconds = [float(combine(turn[part])) for turns in self.rounds for turn in turns[name]]
        tokens = batch * (length if phase == "prefill" else new_tokens)
        found = [self._measurement(f"{phase}_tokens_per_second", [tokens / each for each in seconds])]
        if phase == "prefill":
            found.insert(0, self._measurement("time_to_first_token_seconds", seconds))
        return found

    def _measurement(self, metric: str, samples: list[float]) -> Measurement:
        return median_measurement(metric, self.settings.label, samples, asdict(self.settings), n=len(self.rounds))
