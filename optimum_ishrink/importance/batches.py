"""Calibration windows, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ..core.processes import process_share


@dataclass(frozen=True)
class Batch:
    """Some windows on the model's device.

    Args:
        input_ids: Token ids, shape (windows, length). Those of image features are negative.
        mask: 1 for text and images and 0 for padding, the same shape.
        number: Its index among the batches of all processes.
    """

    input_ids: torch.Tensor
    mask: torch.Tensor
    number: int = 0

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
    """

    windows: torch.Tensor
    mask: torch.Tensor | None
    size: int
    device: torch.device

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self._own)

    @property
    def _own(self) -> Sequence[tuple[int, torch.Tensor]]:
        starts = range(0, len(self.windows), self.size)
        rows = torch.arange(len(self.windows))
        return process_share([(number, rows[start : start + self.size]) for number, start in enumerate(starts)])

    def __iter__(self) -> Iterator[Batch]:
        mask = torch.ones_like(self.windows) if self.mask is None else self.mask
        for number, rows in self._own:
            yield Batch(self.windows[rows].to(self.device), mask[rows].to(self.device), number)
