"""Squared-weight magnitude."""

import torch

from ..registry import layer_criterion, unit_criterion

_FORMULA = "sum of w^2 over the weights of the unit"
_REFERENCE = "Han et al. 2015, arXiv:1506.02626; by groups: Li et al. 2017, arXiv:1608.08710"


@unit_criterion("magnitude", needs="weights", formula=_FORMULA, reference=_REFERENCE)
@layer_criterion("magnitude", needs="weights", formula=_FORMULA, reference=_REFERENCE)
def magnitude(weight: torch.Tensor) -> torch.Tensor:
    """Return the squared weights: `s(w) = w^2`.

    It reads no text and needs no model in memory, only the tensors one after another. It does not see what a unit is
    used
    for: on trained models it is a baseline, not a recommendation.

    Args:
        weight: A weight or bias, any shape and dtype.

    Returns:
        float32, the same shape.
    """
    return weight.float().square()
