"""Relations between the values of an attention layer."""

import math

import torch

from ..loss_registry import recovery_loss


@recovery_loss(
    "attention",
    reads="values",
    formula="KL between rows of softmax(V V^T / sqrt(d)), causal, mean over heads and layers",
    reference="the value relation of MiniLM, Wang et al. 2020, arXiv:2002.10957, eq. 5 and 6",
)
def attention(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return how differently two attention layers relate each token's value to those before it.

    A relation is a matrix over positions, so models with other head sizes can be compared. With the same number of KV
    heads in both, heads are compared one by one; else all heads together make one relation, as heads that were removed
    have no counterpart.

    Args:
        student: Values, shape (batch, KV heads, length, head size).
        teacher: Values, shape (batch, its KV heads, length, its head size).

    Returns:
        float32, shape (batch, length). The first token has nothing before it, and gives 0.
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = (values.transpose(1, 2).flatten(2).unsqueeze(1) for values in (student, teacher))
    log_p, log_q = _log_relation(teacher), _log_relation(student)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean(1)


def _log_relation(values: torch.Tensor) -> torch.Tensor:
    values = values.float()
    products = values @ values.transpose(-1, -2) / math.sqrt(values.shape[-1])
    length = products.shape[-1]
    future = torch.ones(length, length, dtype=torch.bool, device=products.device).triu(1)
    # The lowest float and not -inf: the difference of two masked entries has to be 0, also in the backward pass.
    return products.masked_fill(future, torch.finfo(torch.float32).min).log_softmax(-1)
