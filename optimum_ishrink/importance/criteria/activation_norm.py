"""Activation norm, weighted by the projection that reads it."""

import torch

from ..criterion import unit_criterion


@unit_criterion(
    "activation-norm",
    needs="activations",
    formula="sum over the unit's channels of mean(x^2) * ||W[:, channel]||^2",
    reference="Wanda, Sun et al. 2024, arXiv:2306.11695, eq. 1, by channels; FLAP, An et al. 2024, arXiv:2312.11983",
)
def activation_norm(second_moment: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the energy that each input channel brings to the output: `s(c) = mean(x_c^2) * ||W[:, c]||_2^2`.

    It is the mean squared change of the output when the channel alone is set to zero. Forward passes suffice.

    Args:
        second_moment: Mean square of each input channel of `o_proj` or `down_proj`, float32, shape (channels,).
        weight: That projection's weight, shape (out, channels).

    Returns:
        float32, shape (channels,).
    """
    return second_moment * weight.float().square().sum(dim=0)
