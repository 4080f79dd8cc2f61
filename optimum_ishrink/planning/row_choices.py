"""How small a vocabulary can become, and what each size costs in tokens: what the choice of a shape knows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ShapeError


@dataclass(frozen=True)
class RowChoices:
    """The sizes that a vocabulary can have.

    Args:
        total: Rows of the model's embedding.
        tokens: Rows that text can reach; those beyond have no token.
        multiple: What sizes are multiples of; the model's own size is always allowed.
        extra_tokens: Expected additional tokens per token of text when so many of the tokens have been removed:
            `extra_tokens[0]` is 0. Its length says how many can be removed.
        required: Number of tokens that have to stay, by the reason.
    """

    total: int
    tokens: int
    multiple: int
    extra_tokens: Sequence[float] = field(repr=False)
    required: Mapping[str, int] = field(default_factory=dict)

    @property
    def least(self) -> int:
        """The smallest size."""
        return min(self.total, _round_up(self.tokens - (len(self.extra_tokens) - 1), self.multiple))

    @property
    def free(self) -> int:
        """The smallest size without loss: rows beyond the tokenizer's tokens are removed."""
        return min(self.total, _round_up(self.tokens, self.multiple))

    def extra(self, size: int) -> float:
        """Return the expected additional tokens per token of text at a size.

        Args:
            size: Rows, between `least` and `total`.
        """
        return self.extra_tokens[max(0, self.tokens - size)]

    def around(self, size: float) -> tuple[int, int]:
        """Return the nearest sizes that the vocabulary can have, not above and not below a size where there are such.

        Args:
            size: Rows.
        """
        below = int(min(max(size, self.least), self.total) // self.multiple * self.multiple)
        above = below if below >= size else below + self.multiple
        if size >= self.total:
            return self.total, self.total
        return max(self.least, below), max(self.least, min(self.total, above))

    def check(self, size: int) -> None:
        """Check a requested size.

        Args:
            size: Rows.

        Raises:
            ShapeError: It is too small, or not a multiple; the message names the nearest that can be had.
        """
        if size == self.total:
            return
        if size < self.least:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.required.items())
            raise ShapeError(
                f"vocab_size={size} is fewer than the {self.least:,} rows that have to stay: {reasons}; "
                f"use {self.least} or more"
            )
        if size % self.multiple:
            below = size // self.multiple * self.multiple
            near = [each for each in (below, below + self.multiple) if self.least <= each <= self.total]
            raise ShapeError(
                f"vocab_size={size} is not a multiple of {self.multiple}, which kernels and tensor parallelism need; "
                f"use {' or '.join(map(str, near))}, or set vocab_multiple"
            )


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
