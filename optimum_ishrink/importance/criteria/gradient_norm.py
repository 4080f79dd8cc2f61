"""Norm of the gradient."""

import torch

from ..criterion import unit_criterion


@unit_criterion(
    "gradient-norm",
    needs="gradients",
    of_sum=torch.sqrt,
    formula="sqrt of the sum over the unit's weights of (dL/dw)^2, averaged over batches",
    reference="the iShrink thesis (MBZUAI 2025); compared with others by Molchanov et al. 2019, arXiv:1906.10771",
)
def gradient_norm(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the squared gradients: the root of their sum over a unit is the norm of its gradient, `||dL/dw||_2`.

    It measures how strongly the loss responds to a change of the unit's weights, whatever their size.

    Args:
        weight: A weight or bias, any shape and dtype; not used.
        gradient: Gradient of the batch's loss, the same shape.

    Returns:
        float32, the same shape.
    """
    return gradient.float().square()
