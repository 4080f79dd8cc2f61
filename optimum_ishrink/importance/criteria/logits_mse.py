"""Mean squared change of the logits."""

import torch

from ..criterion import unit_criterion


@unit_criterion(
    "logits-mse",
    needs="logits",
    by_groups=True,
    formula="mean over tokens and vocabulary of (logits - logits with the unit at zero)^2",
    reference="the iShrink thesis (MBZUAI 2025); removal of blocks: Kim et al. 2024, arXiv:2402.02834",
)
def logits_mse(before: torch.Tensor, after: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Return how far the logits of each token move, squared, on average over the vocabulary.

    It is not an estimate: the unit is set to zero and the rest of the model runs.

    Args:
        before: Logits of the whole model, shape (tokens, vocabulary).
        after: Logits with the unit at zero, the same shape.
        following: The tokens that followed, shape (tokens,); not used.

    Returns:
        float32, shape (tokens,).
    """
    return (after.float() - before.float()).square().mean(dim=-1)
