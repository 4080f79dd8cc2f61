"""What a chunk of the student's logits is compared with: labels, and the teacher's distribution whole or in part."""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORED = -100
"""Label of a token that no cross-entropy is taken on; torch's own convention."""


@dataclass(frozen=True)
class TopK:
    """A next-token distribution by its k most likely tokens and the mass of all others together.

    Args:
        log_probs: Log-probabilities of the k tokens, shape (tokens, k), nats.
        indices: Which tokens they are, int64, shape (tokens, k).
        log_tail: Log of the probability of all other tokens together, float32, shape (tokens,); -inf when there are
            none.
    """

    log_probs: torch.Tensor
    indices: torch.Tensor
    log_tail: torch.Tensor

    def part(self, rows: slice | torch.Tensor) -> TopK:
        """Return some of the tokens, by a slice or a mask."""
        return TopK(self.log_probs[rows], self.indices[rows], self.log_tail[rows])


@dataclass(frozen=True)
class Targets:
    """What the logits of some tokens are compared with.

    Args:
        labels: The next tokens, int64, shape (tokens,); `IGNORED` where none is wanted.
        teacher: The teacher's logits, shape (tokens, vocabulary), or their `TopK`; None without a teacher. Only of the
            tokens that are `IGNORED` in `within`, where that is not None.
        temperature: What logits are divided by before they are compared.
        within: The next tokens, int64, shape (tokens,), where the teacher predicts none, within a token that it reads
            as one; `IGNORED` where it predicts. None where it does everywhere.
        jsd_beta: Share of the teacher in the mixture that the Jensen-Shannon divergence is taken to.
        skew: Share of the distribution itself in the mixture that a skewed divergence compares it with.
    """

    labels: torch.Tensor
    teacher: torch.Tensor | TopK | None = None
    temperature: float = 1.0
    within: torch.Tensor | None = None
    jsd_beta: float = 0.5
    skew: float = 0.1


def log_tail(logits: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of all tokens but some, together.

    It is summed from those tokens' own logits: one minus the sum of the others would lose all digits where the tail is
    small.

    Args:
        logits: float32, shape (tokens, vocabulary).
        indices: Tokens to leave out, int64, shape (tokens, k).

    Returns:
        float32, shape (tokens,). When nothing is left it is -inf.
    """
    rest = logits.scatter(-1, indices, float("-inf"))
    if indices.shape[-1] >= logits.shape[-1]:
        return torch.full_like(logits[..., 0], float("-inf"))
    return rest.logsumexp(-1) - logits.logsumexp(-1)


def top_k(logits: torch.Tensor, k: int, *, temperature: float = 1.0) -> TopK:
    """Return the k most likely tokens of next-token distributions, and the mass of the rest.

    Args:
        logits: Shape (tokens, vocabulary).
        k: How many; at most the vocabulary.
        temperature: What the logits are divided by first.
    """
    scaled = logits.float() / temperature
    values, indices = scaled.topk(min(k, scaled.shape[-1]), dim=-1)
    return TopK(values - scaled.logsumexp(-1, keepdim=True), indices, log_tail(scaled, indices))
