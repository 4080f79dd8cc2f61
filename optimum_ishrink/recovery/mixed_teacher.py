"""Several teachers as one, whose predictions are the weighted mean of theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .targets import TopK, top_k
from .teacher import Lesson, LiveTeacher
from .teacher_text import TeacherText
from .translating_teacher import TranslatingTeacher


class MixedTeacher:
    """Teachers of one tokenizer that run on every batch, averaged in probability.

    The mixture of their next-token distributions is one that each of them supports: where one teacher is certain and
    another is not, it stays in doubt, while a mean of logits, a product of distributions, would have no mass where any
    of them has none. For `kl` the gradient is the weighted mean of those by each teacher (ensemble distillation,
    Hinton et al. 2015, arXiv:1503.02531).

    Args:
        teachers: The teachers; each gives whole distributions over the student's tokens.
        weights: The share of each; they add up to 1.
        k: Keep only the k most likely tokens of the mixture, and the mass of the rest; None for all.
        temperature: What logits are divided by before the student is compared: distributions are mixed at it.
    """

    def __init__(
        self,
        teachers: Sequence[LiveTeacher | TranslatingTeacher],
        weights: Sequence[float],
        *,
        k: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.teachers, self.weights = tuple(teachers), tuple(weights)
        self.k, self.temperature = k, temperature

    @property
    def rows(self) -> int:
        """How many tokens its distributions are over."""
        return self.teachers[0].rows

    def follow(self, sampled: TeacherText) -> None:
        """Let teachers who read other tokens than the student read further windows.

        Args:
            sampled: Windows that the student sampled, in the teachers' tokens.
        """
        for teacher in self.teachers:
            if isinstance(teacher, TranslatingTeacher):
                teacher.follow(sampled)

    @torch.no_grad()
    def teach(self, input_ids: torch.Tensor, windows: torch.Tensor) -> Lesson:
        """Run all models on a batch; their logits are computed when rows of them are requested."""
        lessons = [teacher.teach(input_ids, windows) for teacher in self.teachers]

        @torch.no_grad()
        def distribution(part: slice) -> torch.Tensor | TopK:
            mixed: torch.Tensor | None = None
            for lesson, weight in zip(lessons, self.weights, strict=True):
                assert lesson.distribution is not None, "several teachers are asked for logits alone"
                logits = lesson.distribution(part)
                assert isinstance(logits, torch.Tensor), "the top k is taken of the mixture"
                one = (logits.float() / self.temperature).log_softmax(-1) + math.log(weight)
                mixed = one if mixed is None else torch.logaddexp(mixed, one)
            assert mixed is not None, "there are teachers"
            # Whoever reads this divides by the temperature, as of logits.
            whole = mixed * self.temperature
            return whole if self.k is None else top_k(whole, self.k, temperature=self.temperature)

        return Lesson(distribution, shared=lessons[0].shared)
