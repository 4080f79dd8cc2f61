"""Fisher information of a unit's or a layer's contribution."""

import torch

from ..criterion import layer_criterion, unit_criterion

_FORMULA = "mean over tokens of (x . dL/dx)^2, labels drawn from the model"
_REFERENCE = "Theis et al. 2018, arXiv:1801.05787, eq. 8; labels: Kunstner et al. 2019, arXiv:1905.12558"


@unit_criterion("fisher", needs="changes", formula=_FORMULA, reference=_REFERENCE)
@layer_criterion("fisher", needs="changes", formula=_FORMULA, reference=_REFERENCE)
def fisher(change: torch.Tensor) -> torch.Tensor:
    """Return the squared first-order change of the log-likelihood when a unit is set to zero, `s = (x . dL/dx)^2`.

    L is the negative log-likelihood of a next token that is drawn from the model's own distribution. Its gradient has
    mean zero, so the mean of the squares is the unit's entry in the Fisher information: twice the KL divergence, to
    second order, between the model and the model without the unit. That is the quantity that the evaluation
    measures. It needs only contexts from the text, no labels.

    Args:
        change: `x . dL/dx` of each token (and unit): what leaves the unit times the gradient there, summed over the
            unit's channels. Any shape.

    Returns:
        float32, the same shape.
    """
    return change.float().square()
