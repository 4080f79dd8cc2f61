"""Logits for chunks of positions, exactly as the model's class computes them, and sums of losses over the chunks.

A vocabulary of 128,000 and a window of 4,096 tokens make 2 GB of float32 logits, once for the student, once for the
teacher, and again for each gradient. Here only a chunk of positions has logits at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ..core.micro_batch import free_bytes, is_measured
from .base import base_of

CHUNK = 2**23
"""Logits in memory at once on a CPU: 32 MB in float32. Smaller chunks make the head's matrix product thin and slow."""

BLOCK = 2**20
"""Logits compared at once on a CPU, of those of a chunk: 4 MB in float32, so that what one step of a loss writes is
near when the next one reads it."""

MOST = 2**27
"""Logits in memory at once on a GPU, at most: a thousand positions of a vocabulary of 128,000 keep all of it busy."""

_SHARE, _BYTES = 16, 40
"""On a GPU a chunk takes one part in 16 of the free memory, at 40 bytes a logit: what a divergence holds of student
and teacher, with its gradient, in float32."""


def logits_at_once(device: torch.device) -> int:
    """Return how many logits a chunk has: on a GPU as many as its free memory allows.

    Args:
        device: Where they are computed.
    """
    if not is_measured(device):
        return CHUNK
    return min(max(CHUNK, free_bytes(device) // (_SHARE * _BYTES)), MOST)


SumOfChunk = Callable[[torch.Tensor, slice], torch.Tensor]
"""Takes the logits of some rows and the slice of these rows; returns a float32 vector: the total, then its parts."""


@contextmanager
def _base_returns(model: Any, output: Any) -> Iterator[None]:
    """Make a causal language model's base return a given output instead of running."""
    base = base_of(model)
    original = base.__dict__.get("forward")
    base.forward = lambda *_, **__: output
    try:
        yield
    finally:
        if original is None:
            del base.forward
        else:
            base.forward = original


class Head:
    """What a causal language model computes after its base: the head, and what its class does to the logits.

    Some classes scale or cap the logits. So the forward pass of the class runs, on hidden states that are already
    computed.

    Args:
        model: The causal language model.
        at_once: Logits in memory at once; by default what the device allows when the first are computed.
    """

    def __init__(self, model: Any, at_once: int | None = None) -> None:
        self.model = model
        self._at_once = at_once

    def __call__(self, hidden: torch.Tensor, output_class: type) -> torch.Tensor:
        """Return logits of shape (tokens, vocabulary).

        Args:
            hidden: Last hidden states of the base, shape (tokens, hidden).
            output_class: Class of the base's output.
        """
        states = hidden.unsqueeze(0)
        with _base_returns(self.model, output_class(last_hidden_state=states)):
            logits: torch.Tensor = self.model(inputs_embeds=states, use_cache=False).logits
        return logits[0]

    @cached_property
    def rows(self) -> int:
        """Positions whose logits are computed at once."""
        at_once = self._at_once or logits_at_once(self.model.device)
        return max(1, at_once // int(self.model.config.get_text_config().vocab_size))

    @property
    def trains(self) -> bool:
        """Whether any parameter of the head is trained."""
        head = self.model.get_output_embeddings()
        return head is None or any(parameter.requires_grad for parameter in head.parameters())


class _GradientAhead(torch.autograd.Function):
    """Sums over chunks whose gradient is computed chunk by chunk in the forward pass.

    The backward pass only multiplies the gradient by a factor, so it can be computed together with the chunk: no chunk
    is computed twice, and no logits are stored. Only for a head that is not trained.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], of_chunk: SumOfChunk, rows: int
    ) -> torch.Tensor:
        gradient = torch.empty_like(hidden)
        sums = None
        for part in _parts(len(hidden), rows):
            with torch.enable_grad():
                states = hidden[part].detach().requires_grad_()
                logits = head(states)
                upward = torch.empty_like(logits)
                for block in _parts(len(logits), _rows_of_block(logits)):
                    leaf = logits[block].detach().requires_grad_()
                    found = of_chunk(leaf, slice(part.start + block.start, part.start + block.stop))
                    (upward[block],) = torch.autograd.grad(found[0], leaf)
                    sums = found.detach() if sums is None else sums + found.detach()
                (gradient[part],) = torch.autograd.grad(logits, states, upward)
            del logits, leaf, upward  # each as large as a chunk
        ctx.save_for_backward(gradient)
        assert sums is not None
        return sums

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0][0].to(gradient.dtype), None, None, None


def _rows_of_block(logits: torch.Tensor) -> int:
    """Return how many rows of logits are compared at once, of those that a matrix product gave."""
    return len(logits) if is_measured(logits.device) else max(1, BLOCK // logits.shape[-1])


def _parts(length: int, rows: int) -> Iterator[slice]:
    return (slice(start, min(start + rows, length)) for start in range(0, length, rows))


def chunked_sum(
    hidden: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    of_chunk: SumOfChunk,
    *,
    rows: int,
    head_trains: bool,
) -> torch.Tensor:
    """Return a sum over positions, computed chunk by chunk, so that only one chunk has logits in memory.

    Args:
        hidden: Input of the head, shape (tokens, hidden).
        head: Turns rows of it into logits.
        of_chunk: Sums of some rows.
        rows: Rows in a chunk.
        head_trains: Whether the head's parameters need a gradient. If so, every chunk is computed a second time in the
            backward pass (activation checkpointing).

    Returns:
        The vector that `of_chunk` gives, summed over chunks. Only its first entry has a gradient.
    """
    if torch.is_grad_enabled() and not head_trains:
        sums: torch.Tensor = _GradientAhead.apply(hidden, head, of_chunk, rows)  # type: ignore[no-untyped-call]
        return sums
    found = []
    for part in _parts(len(hidden), rows):

        def run(states: torch.Tensor, part: slice = part) -> torch.Tensor:
            return of_chunk(head(states), part)

        if torch.is_grad_enabled():
            found.append(checkpoint(run, hidden[part], use_reentrant=False))
        else:
            found.append(run(hidden[part]))
    return torch.stack(found).sum(0)
