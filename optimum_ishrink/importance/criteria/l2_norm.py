"""L2 norm of the weights."""

import torch

from ..criterion import expert_criterion, layer_criterion, unit_criterion

_FORMULA = "sqrt of the sum of w^2 over the weights"
_REFERENCE = "Sander et al. 2025, arXiv:2505.18166 (MLP blocks); Han et al. 2015, arXiv:1506.02626 (magnitude)"


@unit_criterion("l2-norm", needs="weights", of_sum=torch.sqrt, formula=_FORMULA, reference=_REFERENCE)
@expert_criterion("l2-norm", needs="weights", of_sum=torch.sqrt, formula=_FORMULA, reference=_REFERENCE)
@layer_criterion("l2-norm", needs="weights", of_sum=torch.sqrt, formula=_FORMULA, reference=_REFERENCE)
def l2_norm(weight: torch.Tensor) -> torch.Tensor:
    """Return the squared weights: the root of their sum over a unit, an expert or a layer is its L2 norm, `||w||_2`.

    It reads no text and needs no model in memory, only the tensors one after another. It does not see what a unit is
    used for: on trained models it is a baseline, not a recommendation.

    Args:
        weight: A weight or bias, any shape and dtype.

    Returns:
        float32, the same shape.
    """
    return weight.float().square()
