"""Forward KL divergence to the teacher."""

from typing import Any

import torch

from ...errors import RequestError
from ..registry import recovery_loss
from ..targets import Targets, TopK, log_tail


@recovery_loss(
    "kl",
    reads="logits",
    formula="T^2 sum_v p(v) (log p(v) - log q(v)), p and q at temperature T",
    reference="the self-distillation (L2PSD) of Sander et al. 2025, arXiv:2505.18166; T^2 as in arXiv:1503.02531",
)
def kl(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Return KL(teacher || student) of next-token distributions.

    With a `TopK` the tokens that it does not name count as one: what the student gives to all of them together is
    compared with what the teacher gives. That is a lower bound of the full divergence, and equal to it when k is the
    vocabulary.

    Args:
        logits: The student's, shape (tokens, vocabulary).
        targets: The teacher's logits of the same shape, or their top k at the same temperature.

    Returns:
        float32, shape (tokens,), nats times the squared temperature: without the square, gradients would shrink with
        it.

    Raises:
        RequestError: There is no teacher.
    """
    temperature = targets.temperature
    scaled = _scale(logits, temperature)
    if isinstance(targets.teacher, TopK):
        divergence = _top_k_divergence(scaled, targets.teacher)
    elif targets.teacher is not None:
        divergence = _Divergence.apply(scaled, _scale(targets.teacher, temperature))  # type: ignore[no-untyped-call]
    else:
        raise RequestError("the loss 'kl' compares with a teacher, and there is none; name one")
    return temperature**2 * divergence


def _scale(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return logits.float() if temperature == 1 else logits.float() / temperature


class _Divergence(torch.autograd.Function):
    """KL(p || q) with its gradient `q - p` written out: half of the passes over the vocabulary that autograd makes."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        log_p, log_q = teacher.log_softmax(-1), logits.log_softmax(-1)
        p = log_p.exp()
        ctx.save_for_backward(p, log_q)
        return log_p.sub_(log_q).mul_(p).sum(-1)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        p, log_q = ctx.saved_tensors
        return (log_q.exp() - p).mul_(upstream[0].unsqueeze(-1)), None


def _top_k_divergence(scaled: torch.Tensor, top: TopK) -> torch.Tensor:
    log_q = scaled.gather(-1, top.indices) - scaled.logsumexp(-1, keepdim=True)
    log_p = top.log_probs.float()
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    if top.indices.shape[-1] >= scaled.shape[-1]:
        return divergence
    log_p_tail = top.log_tail.float()
    log_q_tail = log_tail(scaled, top.indices)
    mass = log_p_tail.exp()
    # A teacher that is certain has no tail: 0 log 0 is 0.
    return divergence + torch.where(mass > 0, mass * (log_p_tail.clamp_min(-1e4) - log_q_tail), 0.0)
