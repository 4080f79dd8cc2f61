"""L1 norm of the weights."""

import torch

from ..criterion import unit_criterion


@unit_criterion(
    "l1-norm",
    needs="weights",
    formula="sum of |w| over the unit's weights",
    reference="Li et al. 2017, arXiv:1608.08710, over all weights of the unit",
)
def l1_norm(weight: torch.Tensor) -> torch.Tensor:
    """Return the absolute weights: their sum over a unit is its L1 norm, `||w||_1`.

    It reads no text. It does not see what a unit is used for: on trained models it is a baseline.

    Args:
        weight: A weight or bias, any shape and dtype.

    Returns:
        float32, the same shape.
    """
    return weight.float().abs()
