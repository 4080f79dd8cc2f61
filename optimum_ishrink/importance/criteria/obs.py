"""Optimal brain surgeon: the error that the best repair leaves."""

import torch

from ..criterion import unit_criterion


@unit_criterion(
    "obs",
    needs="gram",
    formula="trace(W_u [(H^-1)_uu]^-1 W_u^T): output error left when the retained columns are re-fit by least squares",
    reference="Hassibi & Stork 1993; ZipLM, arXiv:2302.04089; SlimGPT, arXiv:2412.18110",
)
def obs(gram: torch.Tensor, weight: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """Return the least squared error of a projection's output that removing each unit alone leaves.

    With `H = X^T X / tokens + lambda I` and `W_u` the columns of unit `u`, the best fit of the retained columns leaves
    `trace(W_u [(H^-1)_uu]^-1 W_u^T)`; for a single channel that is `||W[:, c]||^2 / (H^-1)_cc`. A unit whose inputs
    others can replace scores low, however large its weights are.

    Args:
        gram: H with its ridge, float64, shape (channels, channels); positive definite.
        weight: The projection's weight, shape (out, channels).
        channels: The input channels of each unit, int64, shape (units, channels of a unit).

    Returns:
        float32, shape (units,).
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    blocks = inverse[channels[:, :, None], channels[:, None, :]]  # (units, channels, channels)
    columns = weight.double()[:, channels].permute(1, 2, 0)  # (units, channels, out)
    solved = torch.linalg.solve(blocks, columns)
    scores: torch.Tensor = (columns * solved).sum(dim=(1, 2))
    return scores.clamp_min(0).float()
