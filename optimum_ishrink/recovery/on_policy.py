"""On-policy text: windows that the student samples while it is trained, in place of some of the given ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from ..core.digest import digest
from ..text.sampling import sample_text
from .mixed_teacher import MixedTeacher
from .options import RecoveryOptions
from .student import Student
from .targets import IGNORED
from .teacher_text import TokenPair
from .training_text import RecoveryText, training_order
from .translating_teacher import TranslatingTeacher

PROMPT_SHARE = 8
"""The first eighth of a window stays as given and is the prompt, as GKD's prompts are those of a data set: what the
student writes is then text like that of the request."""


class StudentText:
    """Windows that the student writes on from the beginnings of given ones.

    Source: generalised knowledge distillation (GKD), Agarwal et al. 2024, arXiv:2306.13649, algorithm 1. There a whole
    step is of one kind or the other, here a share of all windows. As there, no gradient is taken through the sampling.

    The windows of several steps are sampled at once, by the weights before the first of them: a step alone would leave
    most of a batch empty. They are sampled anew for the next steps, so what is stored is those of the steps that run.

    Args:
        options: The share, the steps, the temperature and the seed.
        text: The recovery text.
        tokenizer: The student's tokenizer.
        pair: The same with that of a teacher who reads other tokens; None where it reads the student's.
        teacher: That teacher, which is told what was sampled.
    """

    def __init__(
        self,
        options: RecoveryOptions,
        text: RecoveryText,
        tokenizer: Any,
        *,
        pair: TokenPair | None = None,
        teacher: TranslatingTeacher | MixedTeacher | None = None,
    ) -> None:
        assert (pair is None) == (teacher is None), "only a teacher of other tokens has to be told"
        self.options, self.text, self.tokenizer = options, text, tokenizer
        self._pair, self._teacher = pair, teacher
        self._order = training_order(text.trained, options.recovery_epochs, options.seed)
        total = len(self._order)
        self._windows_per_round = options.recovery_on_policy_steps * options.recovery_batch_size
        # Exactly the share, at places that have nothing to do with the order of the text or the processes.
        order = torch.randperm(total, generator=torch.Generator().manual_seed(_seed("places", options.seed)))
        self._mine = torch.zeros(total, dtype=torch.bool)
        self._mine[order[: round(options.recovery_on_policy * total)]] = True
        self._chosen = set(self._mine.nonzero()[:, 0].tolist())
        self._process = 0
        self._round: int | None = None
        self._drawn = torch.zeros(0, text.input_ids.shape[1], dtype=torch.int64)
        self._places: dict[int, int] = {}
        self._read = self._drawn

    def divide(self, micro: int, process: int, processes: int) -> None:
        """Sample only what this process trains on.

        Args:
            micro: Windows run at once in one process.
            process: Number of this process.
            processes: How many share a step, taking turns batch by batch.
        """
        self._process = process
        self._mine &= torch.arange(len(self._mine)) // micro % processes == process

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint stores: the windows of the steps that run, which were sampled by weights of before."""
        return {"round": torch.tensor(-1 if self._round is None else self._round), "input_ids": self._drawn.int()}

    def resume(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on with the windows of a checkpoint.

        Args:
            state: What `state` returned.
        """
        if int(state["round"]) >= 0:
            self._take(int(state["round"]), state["input_ids"].long())

    def replace(self, batches: Sequence[dict[str, torch.Tensor]], student: Student) -> list[dict[str, torch.Tensor]]:
        """Return the batches of a step with the sampled windows in their places, and sample these where none are left.

        A sampled window has no labels: its text is the student's own. Its number is beyond those of the given text.

        Args:
            batches: The batches of one step in this process, each with the `place` of its windows in the training.
            student: The student as it is now.
        """
        first = int(batches[0]["place"][0])
        if self._round != first // self._windows_per_round:
            self._sample(first // self._windows_per_round, student)
        return [self._replaced(batch) for batch in batches]

    def _replaced(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids, labels, window = (batch[name].clone() for name in ("input_ids", "labels", "window"))
        for row, place in enumerate(batch["place"].tolist()):
            if place in self._chosen:
                at = self._places[place]  # there, because each process samples what it trains on
                ids[row] = self._read[at]
                labels[row] = IGNORED
                window[row] = len(self.text.input_ids) + at
        return {"input_ids": ids, "labels": labels, "window": window}

    def _sample(self, number: int, student: Student) -> None:
        """Sample the windows of the steps that follow."""
        places = self._places_of(number)
        length = self.text.input_ids.shape[1]
        drawn = torch.zeros(0, length, dtype=torch.int64)
        if places:
            prompt = max(1, length // PROMPT_SHARE)
            prompts = self.text.input_ids[self._order[places], :prompt].tolist()
            seed = _seed("windows", self.options.seed, number, self._process)
            drawn = _sampled(
                student, self.tokenizer, prompts, length, seed, self.options.recovery_sampling_temperature
            )
        self._take(number, drawn)

    def _take(self, number: int, drawn: torch.Tensor) -> None:
        places = self._places_of(number)
        assert len(places) == len(drawn), "the checkpoint is of the same request"
        self._round, self._drawn, self._read = number, drawn, drawn
        self._places = {place: at for at, place in enumerate(places)}
        if self._pair is not None and self._teacher is not None and places:
            self._read, taught = self._pair.read_sampled(drawn, by="student")
            self._teacher.follow(taught)

    def _places_of(self, number: int) -> list[int]:
        first = number * self._windows_per_round
        found: list[int] = (self._mine[first : first + self._windows_per_round].nonzero()[:, 0] + first).tolist()
        return found


def _seed(*parts: str | int) -> int:
    """Return a seed that has nothing to do with those of other draws."""
    return int(digest(list(parts)), 16) % 2**63


def _sampled(
    student: Student, tokenizer: Any, prompts: Sequence[list[int]], length: int, seed: int, temperature: float
) -> torch.Tensor:
    """Return windows that a student samples, as it would compute them in training but without dropout."""
    model, trains = student.model, student.model.training
    kind = model.device.type
    computing = nullcontext() if student.autocast is None else torch.autocast(kind, dtype=student.autocast)
    model.eval()
    try:
        with computing:
            found = sample_text(
                model, tokenizer, length, len(prompts), seed=seed, temperature=temperature, prompts=prompts
            )
    finally:
        model.train(trains)
    return found.input_ids
