"""Reverse KL divergence to the teacher."""

import torch

from ..divergences import compare
from ..loss_registry import recovery_loss
from ..targets import Targets


@recovery_loss(
    "reverse-kl",
    reads="logits",
    formula="T^2 sum_v q(v) (log q(v) - log p(v)), p and q at temperature T",
    reference="MiniLLM, Gu et al. 2024, arXiv:2306.08543, on the teacher's text instead of the student's",
)
def reverse_kl(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Return KL(student || teacher) of next-token distributions.

    It makes the student avoid what the teacher does not say, where `kl` makes it cover all that the teacher does.

    Args:
        logits: The student's, shape (tokens, vocabulary).
        targets: The teacher's logits of the same shape, or their top k at the same temperature.

    Returns:
        float32, shape (tokens,), nats times the squared temperature.

    Raises:
        RequestError: There is no teacher.
    """
    return compare(logits, targets, _divergence, name="reverse-kl")


def _divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ratio = log_q - log_p
    return (log_q.exp() * ratio).sum(-1), ratio
