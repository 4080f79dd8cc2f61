"""Sum of the scores of a layer's units."""

import torch

from ..criterion import layer_criterion


@layer_criterion(
    "sum-of-units",
    needs="unit_scores",
    formula="sum of the layer's KV groups' and neurons' scores under the unit criterion",
    reference="the iShrink thesis (MBZUAI 2025); sums of first-order Taylor scores: arXiv:1906.10771",
)
def sum_of_units(*scores: torch.Tensor) -> torch.Tensor:
    """Return the sum of each layer's unit scores, under any criterion.

    Args:
        scores: Scores of one kind of unit each (KV groups, neurons), shape (layers, units).

    Returns:
        float32, shape (layers,).
    """
    return torch.stack([kind.float().sum(dim=1) for kind in scores]).sum(dim=0)
