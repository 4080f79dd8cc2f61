"""How often experts are used."""

import torch

from ..criterion import Routing, expert_criterion


@expert_criterion(
    "frequency",
    needs="routing",
    formula="share of the tokens that are routed to the expert",
    reference="Muzio et al. 2024, SEER-MoE, arXiv:2404.05089 (heavy-hitters counting, hard counts)",
)
def frequency(routing: Routing) -> torch.Tensor:
    """Return the share of the tokens that have the expert among their top k.

    It depends on the mix of the text more than `reap`: what the text is seldom about scores low however much it
    matters there.

    Args:
        routing: What was observed on the calibration text.

    Returns:
        float32, shape (layers, experts).
    """
    return routing.routed / max(routing.tokens, 1)
