"""What steps of drafts and passes of a base cost, timed in turn on one prompt."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from ..core.device import synchronize
from ..core.key_value_cache import step_reader
from ..core.progress import progress_bar
from ..evaluation.latency import undisturbed
from .assisted import Drafter
from .formula import StepCosts

PASS_LENGTHS = (1, 2, 3, 5, 9, 13)
"""Tokens in the passes of the base that are timed: a drafted round of up to twelve, and the base's own token."""

ROUNDS = 9
"""Turns of each; the median is taken."""


class _Reader:
    """A model that has read a prompt, and reads a few tokens after it again and again.

    Args:
        drafter: The model.
        prompt: Token ids, shape (1, length).
    """

    def __init__(self, drafter: Drafter, prompt: torch.Tensor) -> None:
        self._drafter = drafter
        self._read = step_reader(drafter.model)
        with drafter.running():
            _, self._cache = self._read(prompt)
        if hasattr(self._cache, "activate_past_recording"):
            self._cache.activate_past_recording()

    def seconds(self, tokens: torch.Tensor) -> float:
        """Return the time of one pass, and forget what was read.

        Args:
            tokens: Token ids, shape (1, number).
        """
        with self._drafter.running() as model:
            synchronize(model.device)
            start = time.perf_counter()
            output, self._cache = self._read(tokens, self._cache)
            output.logits[:, -1].argmax(-1)
            synchronize(model.device)
            found = time.perf_counter() - start
        self._cache.crop(-tokens.shape[1])
        return found


@torch.inference_mode()
def measure_costs(
    base: Any, drafters: Sequence[Drafter], prompt: torch.Tensor, *, rounds: int = ROUNDS
) -> dict[str, StepCosts]:
    """Return what a step of each draft and the passes of the base cost, in steps of the base.

    Args:
        base: The base.
        drafters: The drafts, by unique names.
        prompt: Token ids, shape (1, length): what both have read before.
        rounds: Turns of each.
    """
    own = Drafter("", base)
    timed: dict[tuple[str, int], list[float]] = {}
    longest = max(PASS_LENGTHS)
    following = prompt[:, :1].expand(1, longest).contiguous()
    models = {"": base, **{each.name: each.model for each in drafters}}
    with undisturbed(models), progress_bar("timing steps in turn", rounds + 1) as advance:
        readers = {each.name: _Reader(each, prompt) for each in (own, *drafters)}
        jobs = [("", count) for count in PASS_LENGTHS] + [(each.name, 1) for each in drafters]
        for number in range(rounds + 1):
            for name, count in jobs if number % 2 == 0 else jobs[::-1]:
                seconds = readers[name].seconds(following[:, :count])
                if number:  # the first allocates memory and chooses kernels
                    timed.setdefault((name, count), []).append(seconds)
            advance(1)
    middle = {job: median(values) for job, values in timed.items()}
    step = middle["", 1]
    passes: Mapping[int, float] = {count: middle["", count] / step for count in PASS_LENGTHS}
    return {each.name: StepCosts(middle[each.name, 1] / step, passes) for each in drafters}
