"""First-order Taylor expansion of the loss, of the unit as a whole."""

import torch

from ..criterion import unit_criterion


@unit_criterion(
    "taylor-unit",
    needs="gradients",
    of_sum=torch.abs,
    formula="|sum over the unit's weights of w * dL/dw|, averaged over batches",
    reference="Molchanov et al. 2019, arXiv:1906.10771, eq. 8, of a group of weights",
)
def taylor_unit(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return each weight's signed share of the first-order change of the loss, `w * dL/dw`.

    The absolute value is taken of a unit's sum in each batch: the estimate of what removing the whole unit changes, in
    which what one weight gains and another loses cancels. `taylor` adds the absolute values of the weights instead.

    Args:
        weight: A weight or bias, any shape and dtype.
        gradient: Gradient of the batch's loss, the same shape.

    Returns:
        float32, the same shape.
    """
    return weight.float() * gradient.float()
