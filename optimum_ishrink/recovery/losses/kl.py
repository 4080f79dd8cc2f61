"""Forward KL divergence to the teacher."""

from typing import Any

import torch

from ...errors import RequestError
from ..divergences import where_taught
from ..loss_registry import recovery_loss
from ..targets import Targets, TopK


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

    A teacher with more tokens predicts none within a token that the student reads in pieces: there the text says which
    pieces follow, and the loss is the cross-entropy of these.

    Args:
        logits: The student's, shape (tokens, vocabulary).
        targets: The teacher's logits of the same shape, or their top k at the same temperature.

    Returns:
        float32, shape (tokens,), nats times the squared temperature: without the square, gradients would shrink with
        it.

    Raises:
        RequestError: There is no teacher.
    """
    return where_taught(logits, targets, lambda rows: _divergence(rows, targets))


def _divergence(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
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


class _TopKDivergence(torch.autograd.Function):
    """KL(p || q) of the named tokens and all others as one, with its gradient written out.

    With m the teacher's mass, 1 but for rounding, it is `m q - p` for a named token and `q (m - p_tail / q_tail)` for
    any other: one pass over the vocabulary more than cross-entropy takes, where autograd makes five.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, log_p: torch.Tensor, indices: torch.Tensor, log_p_tail: torch.Tensor
    ) -> torch.Tensor:
        log_q = logits.log_softmax(-1)
        log_q_named = log_q.gather(-1, indices)
        # The tail is summed from its own tokens: one minus the others would lose all digits where it is small.
        q = log_q.exp_().scatter_(-1, indices, 0.0)
        q_tail = q.sum(-1).clamp_min(torch.finfo(q.dtype).tiny)
        p, p_tail = log_p.exp(), log_p_tail.exp()
        mass = p.sum(-1) + p_tail
        ctx.save_for_backward(q, mass - p_tail / q_tail, mass.unsqueeze(-1) * log_q_named.exp() - p, indices)
        named = (p * (log_p - log_q_named)).sum(-1)
        # A teacher that is certain has no tail: 0 log 0 is 0.
        return named + torch.where(p_tail > 0, p_tail * (log_p_tail.clamp_min(-1e4) - q_tail.log()), 0.0)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        q, others, named, indices = ctx.saved_tensors
        gradient = q * (others * upstream[0]).unsqueeze(-1)
        return gradient.scatter_(-1, indices, named * upstream[0].unsqueeze(-1)), None, None, None


def _top_k_divergence(scaled: torch.Tensor, top: TopK) -> torch.Tensor:
    log_p = top.log_probs.float()
    if top.indices.shape[-1] >= scaled.shape[-1]:
        log_q = scaled.gather(-1, top.indices) - scaled.logsumexp(-1, keepdim=True)
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    found: torch.Tensor = _TopKDivergence.apply(scaled, log_p, top.indices, top.log_tail.float())  # type: ignore[no-untyped-call]
    return found
