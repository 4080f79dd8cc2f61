"""The teacher: a model that runs beside the student, or its stored predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..modeling.head import Head
from .observe import observe
from .targets import TopK, top_k


@dataclass(frozen=True)
class Lesson:
    """What a teacher computes for one batch.

    Args:
        distribution: Gives the logits, or their top k, of some rows; rows count the predicted tokens of the batch.
            Where `shared` is not None, only of those that are shared.
        layers: Its layers' outputs, shape (batch, length, hidden) each.
        values: Its layers' values, shape (batch, KV heads, length, head size) each, or None without attention.
        shared: For each predicted token of the batch whether the teacher has read the same text as the student before
            it, bool, shape (rows,); None where it has everywhere, because both read the same tokens.
    """

    distribution: Callable[[slice], torch.Tensor | TopK] | None = None
    layers: tuple[torch.Tensor, ...] = ()
    values: tuple[torch.Tensor | None, ...] = ()
    shared: torch.Tensor | None = None


class ChunkOfTeacher:
    """A teacher's distribution by blocks of rows, computed for a whole chunk of them at once.

    Losses go through a chunk in small blocks, while the product with the teacher's head wants many rows.

    Args:
        lesson: What the teacher computed for a batch.
        total: Rows of the batch.
        rows: Rows in a chunk; no block crosses a multiple of it.
    """

    def __init__(self, lesson: Lesson, total: int, rows: int) -> None:
        self.lesson = lesson
        self.total, self.rows = total, rows
        self._begin = -1
        self._found: torch.Tensor | TopK = torch.empty(0)

    def __call__(self, block: slice) -> torch.Tensor | TopK | None:
        """Return the distribution of some rows; where not all are shared with the teacher, of those that are.

        Args:
            block: The rows.
        """
        if self.lesson.distribution is None:
            return None
        begin = block.start - block.start % self.rows
        end = min(begin + self.rows, self.total)
        if begin != self._begin:
            self._forget()
            self._found, self._begin = self.lesson.distribution(slice(begin, end)), begin
        inner = slice(block.start - begin, block.stop - begin)
        if self.lesson.shared is not None:
            before, within = (int(self.lesson.shared[each].sum()) for each in (slice(begin, block.start), block))
            inner = slice(before, before + within)
        found = self._found.part(inner) if isinstance(self._found, TopK) else self._found[inner]
        if block.stop == end:
            self._forget()  # what is kept for a backward pass may hold this object
        return found

    def _forget(self) -> None:
        self._begin, self._found = -1, torch.empty(0)


class Teacher(Protocol):
    """Anything that a student can learn from."""

    def teach(self, input_ids: torch.Tensor, windows: torch.Tensor) -> Lesson:
        """Return what the teacher computes for a batch.

        Args:
            input_ids: Token ids, shape (batch, length).
            windows: Number of each window in the recovery text, shape (batch,).
        """
        ...


@dataclass(frozen=True)
class LayerMap:
    """Which of the teacher's layers each of the student's layers corresponds to.

    Args:
        outputs: For each student layer, the teacher's layer whose output its own output is compared with: where layers
            were dropped after it, the last of those.
        attentions: For each student layer, the teacher's layer whose attention its own is compared with.
    """

    outputs: tuple[int, ...]
    attentions: tuple[int, ...]

    @classmethod
    def of_retained(cls, retained: Sequence[int], layers: int) -> LayerMap:
        """Return the map of a model that was cut from its teacher.

        Args:
            retained: The teacher's layers that were retained, in order.
            layers: How many the teacher has.
        """
        following = [*retained[1:], layers]
        return cls(tuple(layer - 1 for layer in following), tuple(retained))

    @classmethod
    def even(cls, student: int, teacher: int) -> LayerMap:
        """Return the map of two unrelated models: spread evenly, the last on the last.

        Args:
            student: How many layers the student has.
            teacher: How many the teacher has.
        """
        even = tuple(max((layer + 1) * teacher // student - 1, 0) for layer in range(student))
        return cls(even, even)


class LiveTeacher:
    """A model that runs on every batch.

    Args:
        model: The causal language model; it is not trained.
        logits: Whether its logits are wanted.
        layers: Whether its layers' outputs are wanted.
        values: Whether its attention's values are wanted.
        k: Keep only the k most likely tokens, and the mass of the rest; None for all.
        temperature: Temperature of those.
    """

    def __init__(
        self,
        model: Any,
        *,
        logits: bool = True,
        layers: bool = False,
        values: bool = False,
        k: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.model = model.eval()
        self.head = Head(model)
        self.reads = {"layers": layers, "values": values}
        self.logits, self.k, self.temperature = logits, k, temperature

    @property
    def rows(self) -> int:
        """How many tokens its distributions are over."""
        return int(self.model.config.get_text_config().vocab_size)

    @torch.no_grad()
    def teach(self, input_ids: torch.Tensor, windows: torch.Tensor) -> Lesson:
        """Run the model on a batch; its logits are computed when rows of them are requested."""
        seen = observe(self.model, input_ids.to(self.model.device), **self.reads)
        rows = seen.last[:, :-1].flatten(0, 1)

        @torch.no_grad()
        def distribution(part: slice) -> torch.Tensor | TopK:
            logits = self.head(rows[part], seen.output_class)
            return logits if self.k is None else top_k(logits, self.k, temperature=self.temperature)

        return Lesson(distribution if self.logits else None, seen.layers, seen.values)
