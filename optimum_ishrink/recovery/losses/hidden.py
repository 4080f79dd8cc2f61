"""Distance of hidden states."""

import torch

from ..loss_registry import recovery_loss


@recovery_loss(
    "hidden",
    reads="hidden_states",
    formula="||student - teacher||^2 / ||teacher||^2, mean over layers",
    reference="the hidden-state loss of TinyBERT, Jiao et al. 2020, arXiv:1909.10351, eq. 8, relative to the teacher",
)
def hidden(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the squared error of each token's hidden state, as a share of the teacher's square.

    As a share, because the residual stream grows by orders of magnitude from the first layer to the last and a few
    tokens carry very large states: a plain mean of squares would be about those alone.

    Args:
        student: One layer's output, shape (tokens, hidden).
        teacher: The output of the teacher's layer that it corresponds to, the same shape.

    Returns:
        float32, shape (tokens,).
    """
    wanted = teacher.float()
    energy = wanted.square().mean(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return (student.float() - wanted).square().mean(-1) / energy
