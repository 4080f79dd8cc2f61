"""Calibration windows, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Batch:
    """Some windows on the model's device.

    Args:
        input_ids: Token ids, shape (windows, length).
        mask: 1 for text and 0 for padding, the same shape.
    """

    input_ids: torch.Tensor
    mask: torch.Tensor

    @cached_property
    def tokens(self) -> int:
        """Number of tokens that are no padding."""
        return int(self.mask.sum())

    def text(self, values: torch.Tensor) -> torch.Tensor:
        """Return the rows of values, shape (windows, length, ...), that are text, one after another."""
        rows = values.flatten(0, 1)
        return rows if self.tokens == len(rows) else rows[self.mask.flatten().bool()]

    @cached_property
    def predicted(self) -> torch.Tensor:
        """Where the next token is text as well: bool, shape (windows, length - 1)."""
        return (self.mask[:, 1:] * self.mask[:, :-1]).bool()


@dataclass(frozen=True)
class Batches:
    """Calibration windows and how they are batched.

    Args:
        windows: Token ids, shape (windows, length).
        mask: 1 for text and 0 for padding, the same shape; None when nothing is padding.
        size: Windows in a batch.
        device: Where the batches go.
    """

    windows: torch.Tensor
    mask: torch.Tensor | None
    size: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Batch]:
        mask = torch.ones_like(self.windows) if self.mask is None else self.mask
        for start in range(0, len(self.windows), self.size):
            part = slice(start, start + self.size)
            yield Batch(self.windows[part].to(self.device), mask[part].to(self.device))
