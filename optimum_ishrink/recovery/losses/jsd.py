"""Generalised Jensen-Shannon divergence to the teacher."""

import torch

from ..divergences import compare, log_mixture
from ..loss_registry import recovery_loss
from ..targets import Targets


@recovery_loss(
    "jsd",
    reads="logits",
    formula="T^2 (b KL(p || m) + (1 - b) KL(q || m)), m = b p + (1 - b) q, b = recovery_jsd_beta, at temperature T",
    reference="GKD, Agarwal et al. 2024, arXiv:2306.13649, eq. 1",
)
def jsd(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Return the generalised Jensen-Shannon divergence of next-token distributions; p is the teacher's.

    It is bounded. With a small beta its gradient is that of `kl` times beta, with a large one that of `reverse-kl`
    times one minus beta.

    Args:
        logits: The student's, shape (tokens, vocabulary).
        targets: The teacher's logits of the same shape, or their top k at the same temperature; and beta.

    Returns:
        float32, shape (tokens,), nats times the squared temperature.

    Raises:
        RequestError: There is no teacher.
    """
    beta = targets.jsd_beta

    def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_m = log_mixture(log_p, log_q, beta)
        forward, backward = log_p.exp() * (log_p - log_m), log_q - log_m
        return (beta * forward + (1 - beta) * log_q.exp() * backward).sum(-1), (1 - beta) * backward

    return compare(logits, targets, divergence, name="jsd")
