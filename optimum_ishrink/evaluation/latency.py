"""Speed of two models, measured in turn: time to first token, prefill and decode throughput.

Machines drift: they warm up, throttle and share their memory bus. So base and shrunk model take turns within each
round (A B A B ...), after rounds that do not count, and medians are reported with their quartiles.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..artifacts import Measurement
from ..progress import progress_bar


@dataclass(frozen=True)
class LatencySettings:
    """What is timed.

    Args:
        prompt_length: Tokens in the prompt.
        new_tokens: Tokens decoded one after another behind it.
        rounds: Rounds that count.
        warmup: Rounds before them that do not count: the first runs allocate memory and choose kernels.
    """

    prompt_length: int = 128
    new_tokens: int = 32
    rounds: int = 11
    warmup: int = 1

    @property
    def label(self) -> str:
        """The setting's name in reports; every setting is a data set of its own there."""
        return f"prompt {self.prompt_length}, decode {self.new_tokens}, batch 1"


@torch.inference_mode()
def time_in_turn(models: Mapping[str, Any], prompt: torch.Tensor, new_tokens: int) -> dict[str, tuple[float, float]]:
    """Time one round: each model in turn reads the prompt, then each in turn decodes a token, `new_tokens` times.

    Args:
        models: Loaded models by name.
        prompt: Token ids, shape (1, length).
        new_tokens: Tokens to decode greedily after the first, each reading the KV cache.

    Returns:
        By name: seconds to the first token, and seconds for `new_tokens` more.
    """
    first: dict[str, float] = {}
    decode = dict.fromkeys(models, 0.0)
    caches: dict[str, Any] = {}
    tokens = {name: prompt.to(model.device) for name, model in models.items()}
    for step in range(1 + new_tokens):
        for name, model in models.items():
            _synchronize(model)
            start = time.perf_counter()
            output = model(input_ids=tokens[name], past_key_values=caches.get(name), use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
            _synchronize(model)
            seconds = time.perf_counter() - start
            caches[name], tokens[name] = output.past_key_values, token
            if step == 0:
                first[name] = seconds
            else:
                decode[name] += seconds
    return {name: (first[name], decode[name]) for name in models}


def _synchronize(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def measure_latency(
    models: Mapping[str, Any],
    settings: LatencySettings,
    *,
    run: Callable[[Mapping[str, Any], torch.Tensor, int], dict[str, tuple[float, float]]] = time_in_turn,
) -> dict[str, tuple[Measurement, ...]]:
    """Time models in turn.

    Args:
        models: Loaded models by name; they take turns in this order.
        settings: What is timed.
        run: Times one round.

    Returns:
        The measurements of each model, by its name.
    """
    vocabulary = min(model.config.vocab_size for model in models.values())
    ids = torch.randint(vocabulary, (1, settings.prompt_length), generator=torch.Generator().manual_seed(0))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with progress_bar("timing in turn", settings.warmup + settings.rounds) as advance:
        for number in range(settings.warmup + settings.rounds):
            for name, seconds in run(models, ids, settings.new_tokens).items():
                if number >= settings.warmup:
                    times[name].append(seconds)
            advance(1)
    return {name: _summary(rows, settings) for name, rows in times.items()}


def _summary(rows: list[tuple[float, float]], settings: LatencySettings) -> tuple[Measurement, ...]:
    samples = {
        "time_to_first_token_seconds": [first for first, _ in rows],
        "prefill_tokens_per_second": [settings.prompt_length / first for first, _ in rows],
        "decode_tokens_per_second": [settings.new_tokens / decode for _, decode in rows],
    }
    measurements = []
    for metric, values in samples.items():
        low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        measurements.append(
            Measurement(
                metric,
                settings.label,
                statistics.median(values),
                None,
                len(values),
                {**asdict(settings), "statistic": "median", "quartiles": [low, high], "samples": values},
            )
        )
    return tuple(measurements)
