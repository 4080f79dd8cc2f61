"""Skewed KL divergence to the teacher."""

import torch

from ..divergences import compare, log_mixture
from ..loss_registry import recovery_loss
from ..targets import Targets


@recovery_loss(
    "skew-kl",
    reads="logits",
    formula="T^2 KL(p || a p + (1 - a) q), a = recovery_skew, p and q at temperature T",
    reference="DistiLLM, Ko et al. 2024, arXiv:2402.03898, eq. 3",
)
def skew_kl(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Return KL(teacher || mixture of both) of next-token distributions.

    The mixture is nowhere much smaller than the teacher, so that no token has the large gradients that `kl` has where
    the student finds something impossible that the teacher says.

    Args:
        logits: The student's, shape (tokens, vocabulary).
        targets: The teacher's logits of the same shape, or their top k at the same temperature; and the skew.

    Returns:
        float32, shape (tokens,), nats times the squared temperature.

    Raises:
        RequestError: There is no teacher.
    """
    skew = targets.skew

    def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ratio = log_p - log_mixture(log_p, log_q, skew)
        return (log_p.exp() * ratio).sum(-1), -(1 - skew) * ratio.exp()

    return compare(logits, targets, divergence, name="skew-kl")
