"""Cross-entropy."""

import torch

from ..loss_registry import recovery_loss
from ..targets import IGNORED, Targets


@recovery_loss(
    "ce",
    reads="logits",
    teacher=False,
    labels=True,
    formula="-log q(next token)",
    reference="the fine-tuning (L2PFT) of Sander et al. 2025, arXiv:2505.18166",
)
def cross_entropy(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Return the negative log-likelihood of each token's label.

    Args:
        logits: The student's, shape (tokens, vocabulary).
        targets: Their labels; `IGNORED` ones give 0.

    Returns:
        float32, shape (tokens,), nats.
    """
    return torch.nn.functional.cross_entropy(logits.float(), targets.labels, ignore_index=IGNORED, reduction="none")
