"""Made-up timings of two models with a known difference, to see how often the benchmark's verdict is right.

The noise is what shared machines show: the clock wanders, every turn has some independent noise, a few take much
longer, and now and then another process slows everything for a while. Two copies of one model differ a little for
good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from optimum_ishrink.evaluation.latency import PHASES, READINGS, LatencySettings, Rounds
from optimum_ishrink.evaluation.timing import compare_timings


@dataclass(frozen=True)
class Noise:
    """How timings vary; shares of the time that a turn takes.

    Args:
        white: Standard deviation of every turn, independent of all others.
        walk: Standard deviation of the step from turn to turn that the machine's speed wanders by.
        spikes: Share of turns that take longer, by 10 % and more: the tail falls with the power 1.5.
        bursts: Chance that something else begins to run at a turn.
        burst_turns: Turns that it lasts.
        burst_slowdown: What everything slows by meanwhile.
        copies: Standard deviation of the lasting difference between two copies of one model.
    """

    white: float
    walk: float
    spikes: float
    bursts: float
    burst_turns: int
    burst_slowdown: float
    copies: float = 0.005


NOISE: Mapping[str, Noise] = {
    "quiet": Noise(white=0.01, walk=0.001, spikes=0.01, bursts=0.0, burst_turns=1, burst_slowdown=0.0),
    "shared": Noise(white=0.03, walk=0.003, spikes=0.03, bursts=0.01, burst_turns=20, burst_slowdown=0.4),
    "busy": Noise(white=0.04, walk=0.004, spikes=0.05, bursts=0.03, burst_turns=10, burst_slowdown=0.6),
}


def simulate(
    noise: Noise, difference: float, *, runs: int, seed: int, settings: LatencySettings | None = None
) -> list[dict[str, str]]:
    """Return what runs of the benchmark would have measured.

    Args:
        noise: How timings vary.
        difference: By how much the second model is truly faster: 0.1 takes 1 / 1.1 of the time.
        runs: Runs.
        seed: Seed of the noise.
        settings: What is timed; rounds and new tokens count.

    Returns:
        For each run: the verdicts on prefill and decode.
    """
    settings = settings or LatencySettings()
    generator = torch.Generator().manual_seed(seed)
    turns = settings.rounds * (READINGS + settings.new_tokens) * 4
    size = (runs, turns)

    def normal(deviation: float, *shape: int) -> torch.Tensor:
        return torch.randn(*(shape or size), generator=generator) * deviation

    def happens(chance: float) -> torch.Tensor:
        return torch.rand(*size, generator=generator) < chance

    logs = normal(noise.white) + normal(noise.walk).cumsum(1)
    tail = torch.rand(*size, generator=generator).clamp_min(1e-6).pow(-1 / 1.5)
    logs += happens(noise.spikes) * torch.log1p(0.1 * tail)
    starts = torch.nn.functional.pad(happens(noise.bursts).float()[:, None], (noise.burst_turns - 1, 0))
    running = torch.nn.functional.max_pool1d(starts, noise.burst_turns, 1)[:, 0]
    logs += running * torch.log1p(torch.tensor(noise.burst_slowdown))
    logs = logs.view(runs, settings.rounds, READINGS + settings.new_tokens, 4)
    lasting = torch.log1p(torch.tensor(difference)) + normal(noise.copies, runs)
    order = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]])[torch.arange(settings.rounds) % 2]
    seconds = (logs - order[None, :, None] * lasting[:, None, None, None]).exp()
    return [_verdicts(each, order, settings) for each in seconds]


def _verdicts(seconds: torch.Tensor, order: torch.Tensor, settings: LatencySettings) -> dict[str, str]:
    rounds = []
    for times, whose in zip(seconds, order, strict=True):
        turns = {name: times[:, whose == number].T.tolist() for number, name in enumerate(("base", "shrunk"))}
        rounds.append({name: (first, second) for name, (first, second) in turns.items()})
    timed = Rounds(settings, tuple(rounds))
    found = compare_timings(
        [(timed.log_ratios("shrunk", "base", p), timed.log_self_ratios("base", p)) for p in PHASES]
    )
    return {phase: each.verdict for phase, each in zip(PHASES, found, strict=True)}
