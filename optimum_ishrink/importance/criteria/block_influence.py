"""Block influence."""

import torch

from ..criterion import layer_criterion


@layer_criterion(
    "block-influence",
    needs="hidden_states",
    formula="mean over tokens of 1 - cos(block input, block output)",
    reference="ShortGPT, Men et al. 2024, arXiv:2403.03853, eq. 1",
)
def block_influence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return how far a block turns each token's hidden state: `BI = 1 - x . y / (||x|| ||y||)`.

    Args:
        before: Hidden states that enter the block, shape (..., hidden).
        after: Hidden states that leave it, the same shape.

    Returns:
        float32, shape (...).
    """
    return 1 - torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
