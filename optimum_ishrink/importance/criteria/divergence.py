"""KL divergence without the block."""

import torch

from ..criterion import layer_criterion


@layer_criterion(
    "divergence",
    needs="logits",
    formula="mean over tokens of KL(logits || logits with the block removed), in nats",
    reference="block removal: Kim et al. 2024, arXiv:2402.02834; KL divergence to the base: arXiv:2505.18166",
)
def divergence(before: torch.Tensor, after: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Return how far each next-token distribution moves without the block: `KL(before || after)`.

    Unlike perplexity it compares with the prediction of the whole model, not with the text: the text need not be one
    that the model predicts well, and a block that raises the loss on this text is not taken for useless.

    Args:
        before: Logits of the whole model, shape (tokens, vocabulary).
        after: Logits without the block, the same shape.
        following: The tokens that followed, shape (tokens,); not used.

    Returns:
        float32, shape (tokens,).
    """
    log_p, log_q = before.float().log_softmax(dim=-1), after.float().log_softmax(dim=-1)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1).clamp_min(0)
