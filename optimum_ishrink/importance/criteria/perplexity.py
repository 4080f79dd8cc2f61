"""Perplexity without the block."""

import torch

from ..criterion import layer_criterion


@layer_criterion(
    "perplexity",
    needs="logits",
    formula="mean next-token loss (log perplexity) of the calibration text with the block removed",
    reference="Kim et al. 2024, arXiv:2402.02834",
)
def perplexity(before: torch.Tensor, after: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each next token without the block, in nats.

    Perplexity itself is exp of the mean. Its logarithm puts layers into the same order and cannot overflow.

    Args:
        before: Logits of the whole model, shape (tokens, vocabulary); not used.
        after: Logits without the block, the same shape.
        following: The tokens that followed, shape (tokens,).

    Returns:
        float32, shape (tokens,).
    """
    return torch.nn.functional.cross_entropy(after.float(), following, reduction="none")
