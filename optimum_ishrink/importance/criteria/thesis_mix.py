"""The iShrink thesis' mix of three criteria."""

import torch

from ..criterion import unit_criterion

WEIGHTS = (1 / 3, 1 / 3, 1 / 3)
"""Of taylor, logits-mse and gradient-norm. Equal, because after scaling none is known to be better than the others."""


@unit_criterion(
    "thesis-mix",
    needs="scores",
    parts=("taylor", "logits-mse", "gradient-norm"),
    by_groups=True,
    formula="mean of taylor, logits-mse and gradient-norm, each over its mean for all units of the kind",
    reference="the iShrink thesis (MBZUAI 2025); parts: arXiv:1906.10771 and exact removal",
)
def thesis_mix(*parts: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean of scores on a common scale, `sum_k a_k s_k / mean(s_k)`.

    A loss, a squared logit and a gradient have no common unit. Dividing by the mean over all units of one kind (KV
    groups, or neurons) makes the mean unit's score 1 under each. Zeros and ratios are preserved, unlike with a
    z-score; and kinds of very different size are never compared.

    Args:
        parts: Scores of the units of one kind under each criterion, each of shape (layers, units).

    Returns:
        float32, shape (layers, units).
    """
    total = torch.zeros_like(parts[0])
    for share, scores in zip(WEIGHTS, parts, strict=True):
        total += share * scores / scores.mean().clamp_min(torch.finfo(torch.float32).tiny)
    return total
