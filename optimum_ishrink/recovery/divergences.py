"""Divergences between teacher and student: what several losses have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..errors import RequestError
from .targets import IGNORED, Targets, TopK

Divergence = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Takes log p and log q, the teacher's and the student's, each of shape (tokens, outcomes). Returns the divergence of
each token, and its derivative by every q, in which a number that is the same for all outcomes may be left out."""


def compare(logits: torch.Tensor, targets: Targets, divergence: Divergence, *, name: str) -> torch.Tensor:
    """Return a divergence of next-token distributions, times the squared temperature.

    With a `TopK` the tokens that it does not name count as one outcome. That is a lower bound of the whole divergence,
    and equal to it when k is the vocabulary.

    A teacher with more tokens predicts none within a token that the student reads in pieces: there the loss is the
    cross-entropy of the pieces that follow.

    Args:
        logits: The student's, shape (tokens, vocabulary).
        targets: The teacher's logits of the same shape, or their top k at the same temperature.
        divergence: The divergence.
        name: Name of the loss, for messages.

    Returns:
        float32, shape (tokens,), nats times the squared temperature.

    Raises:
        RequestError: There is no teacher.
    """
    if targets.teacher is None:
        raise RequestError(f"the loss {name!r} compares with a teacher, and there is none; name one")

    def of(rows: torch.Tensor) -> torch.Tensor:
        log_p, log_q = _distributions(rows.float() / targets.temperature, targets)
        found: torch.Tensor = _Compared.apply(log_q, log_p, divergence)  # type: ignore[no-untyped-call]
        return targets.temperature**2 * found

    return where_taught(logits, targets, of)


def where_taught(
    logits: torch.Tensor, targets: Targets, divergence: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Return a divergence where the teacher predicts, and the cross-entropy of the next token where it does not.

    Args:
        logits: The student's, shape (tokens, vocabulary).
        targets: What they are compared with.
        divergence: Takes the logits of the tokens where the teacher predicts.

    Returns:
        float32, shape (tokens,).
    """
    if targets.within is None:
        return divergence(logits)
    predicted = targets.within == IGNORED
    within = torch.nn.functional.cross_entropy(
        logits[~predicted].float(), targets.within[~predicted], reduction="none"
    )
    found = torch.zeros(len(logits), device=logits.device)
    return found.masked_scatter(predicted, divergence(logits[predicted])).masked_scatter(~predicted, within)


def _distributions(scaled: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p and log q over the same outcomes: all tokens, or those of a top k and all others as one."""
    top = targets.teacher
    if isinstance(top, torch.Tensor):
        return (top.float() / targets.temperature).log_softmax(-1), scaled
    assert isinstance(top, TopK), "there is a teacher"
    whole = scaled.logsumexp(-1, keepdim=True)
    log_p, log_q = top.log_probs.float(), scaled.gather(-1, top.indices) - whole
    if top.indices.shape[-1] < scaled.shape[-1]:
        # The tail is summed from its own tokens: one minus the others would lose all digits where it is small.
        rest = scaled.scatter(-1, top.indices, float("-inf")).logsumexp(-1, keepdim=True) - whole
        # A teacher that is certain has no tail; the smallest number stands for it, so that its logarithm is finite.
        tail = top.log_tail.float().unsqueeze(-1).clamp_min(math.log(torch.finfo(torch.float32).tiny))
        log_p, log_q = torch.cat([log_p, tail], -1), torch.cat([log_q, rest], -1)
    return log_p.log_softmax(-1), log_q  # what is read from disk does not add up to 1 to the last digit


class _Compared(torch.autograd.Function):
    """A divergence with its gradient by the logits written out: one tensor of their size is stored, not five."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, log_p: torch.Tensor, divergence: Divergence) -> torch.Tensor:
        log_q = logits.log_softmax(-1)
        value, by_q = divergence(log_p, log_q)
        q = log_q.exp()
        mean = (q * by_q).sum(-1, keepdim=True)
        ctx.save_for_backward(q * (by_q - mean))
        return value

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].unsqueeze(-1), None, None


def log_mixture(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """Return the logarithm of a mixture of two distributions.

    Args:
        first: Log-probabilities.
        second: Log-probabilities of the same shape.
        share: Share of the first, between 0 and 1.
    """
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))
