"""Calibration windows, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch

from ..core.device import to_device
from ..core.micro_batch import MicroBatch
from ..core.processes import process_share


@dataclass(frozen=True)
class Batch:
    """Some windows on the model's device.

    Args:
        input_ids: Token ids, shape (windows, length). Those of image features are negative.
        mask: 1 for text and images and 0 for padding, the same shape.
        rows: Which of all windows they are; the first ones by default.
        together: As many windows in a row draw their labels together, however many run at once; all by default.
        counted: Tokens with a loss in the batch that this is a part of; None where it is the whole.
        last: Whether no part of that batch comes after it.
    """

    input_ids: torch.Tensor
    mask: torch.Tensor
    rows: Sequence[int] | None = None
    together: int | None = None
    counted: int | None = None
    last: bool = True

    def parts(self, size: int) -> Iterator[Batch]:
        """Yield the batch in parts.

        Args:
            size: Windows in a part.
        """
        count = len(self.input_ids)
        if size >= count:
            yield self
            return
        rows, counted = self.rows or range(count), int(self.predicted.sum())
        for start in range(0, count, size):
            part = slice(start, start + size)
            yield Batch(
                self.input_ids[part],
                self.mask[part],
                rows[part],
                self.together or count,
                counted,
                start + size >= count,
            )

    def levels(self, seed: int) -> torch.Tensor:
        """Return a uniform number for each token, the same ones in however many batches the windows run.

        Args:
            seed: Seed of the numbers.

        Returns:
            Shape (windows * length,), on the CPU.
        """
        count, length = self.input_ids.shape
        rows, together = self.rows or range(count), self.together or count
        drawn = {
            number: torch.rand(together, length, generator=torch.Generator().manual_seed(seed + number))
            for number in dict.fromkeys(row // together for row in rows)
        }
        return torch.cat([drawn[row // together][row % together] for row in rows])

    @cached_property
    def tokens(self) -> int:
        """Number of tokens that are not padding."""
        return int(self.mask.sum())

    def text(self, values: torch.Tensor) -> torch.Tensor:
        """Return the rows of values that are text: shape (tokens, ...).

        Args:
            values: Shape (windows, length, ...), or from a block that handles tokens without windows, such as one of
                experts, shape (windows * length, ...).
        """
        rows = values.flatten(0, 1) if values.shape[:2] == self.mask.shape else values
        return rows if self.tokens == len(rows) else rows[self.mask.flatten().bool()]

    @cached_property
    def predicted(self) -> torch.Tensor:
        """Where the next token is text as well: bool, shape (windows, length - 1). A part of an image is no text."""
        return (self.mask[:, 1:] * self.mask[:, :-1]).bool() & (self.input_ids[:, 1:] >= 0)

    @cached_property
    def drawn(self) -> torch.Tensor:
        """1 where a next token can be drawn from the model, the shape of `mask`: not where an image follows."""
        follows = torch.cat([self.input_ids[:, 1:], self.input_ids[:, -1:]], dim=1)
        return self.mask * (follows >= 0)


@dataclass(frozen=True)
class Batches:
    """Calibration windows and how they are batched; with several processes each has every n-th batch.

    Args:
        windows: Token ids, shape (windows, length).
        mask: 1 for text and 0 for padding, the same shape; None when nothing is padding.
        size: Windows in a batch.
        device: Device of the batches.
        grows: Whether more windows may run at once, where a result does not depend on it and memory allows.
    """

    windows: torch.Tensor
    mask: torch.Tensor | None
    size: int
    device: torch.device
    grows: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    @property
    def groups(self) -> Sequence[torch.Tensor]:
        """The numbers of this process's windows, batch by batch."""
        return process_share(torch.split(torch.arange(len(self.windows)), self.size))

    def __iter__(self) -> Iterator[Batch]:
        return map(self.of, self.groups)

    def of(self, rows: torch.Tensor) -> Batch:
        """Return some windows as one batch.

        Args:
            rows: Their numbers.
        """
        mask = torch.ones_like(self.windows) if self.mask is None else self.mask
        ids, here = (to_device(part[rows], self.device) for part in (self.windows, mask))
        return Batch(ids, here, rows.tolist(), self.size)

    def micro_batch(self, *, fixed: bool = False) -> MicroBatch:
        """Return how many of the windows run at once.

        Args:
            fixed: Whether a batch is part of what is computed, so that no more may.
        """
        most = len(self) if self.grows and not fixed else None
        return MicroBatch(self.size, self.device, what="scoring", remedy=_REMEDY, most=most)

    def each(self, run: Callable[[Batch], Result], *, undo: Callable[[], None] | None = None) -> Iterator[Result]:
        """Run this process's windows, as many at once as memory holds, and yield what each batch gives.

        Args:
            run: Runs a batch.
            undo: Removes what a batch that failed has left behind; None where it leaves nothing.

        Raises:
            DeviceMemoryError: One window does not fit.
        """
        if not len(self):
            return
        rows = torch.cat(list(self.groups))
        yield from self.micro_batch().each(len(rows), lambda part: run(self.of(rows[part])), undo=undo)


Result = TypeVar("Result")

_REMEDY = (
    "shorten the windows (--calibration-length), read the layers from disk (--offload always --device cpu) or score "
    "by weights alone (--importance l2-norm)"
)
