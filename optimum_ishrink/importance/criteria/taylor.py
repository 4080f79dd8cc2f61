"""First-order Taylor expansion of the loss."""

import torch

from ..criterion import unit_criterion


@unit_criterion(
    "taylor",
    needs="gradients",
    formula="sum over the unit's weights of |w * dL/dw|, averaged over batches",
    reference="Molchanov et al. 2019, arXiv:1906.10771, eq. 8, in the form of the iShrink thesis (MBZUAI 2025)",
)
def taylor(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the first-order estimate of how much the loss changes without each weight: `s(w) = |w * dL/dw|`.

    L is the cross-entropy of the next token, averaged over a batch's tokens that are not padding.

    Args:
        weight: A weight or bias, any shape and dtype.
        gradient: Gradient of the batch's loss, the same shape.

    Returns:
        float32, the same shape.
    """
    return (weight.float() * gradient.float()).abs()
