"""Router-weighted activations of experts."""

import torch

from ..criterion import Routing, expert_criterion


@expert_criterion(
    "reap",
    needs="routing",
    formula="mean over the tokens routed to the expert of gate weight * ||output||_2",
    reference="REAP, Lasby et al. 2025, arXiv:2510.13999",
)
def reap(routing: Routing) -> torch.Tensor:
    """Return what an expert adds to the residual stream of a token that it reads, `s(e) = mean(g_e * ||f_e||_2)`.

    The mean is over the tokens routed to the expert: one that is seldom needed, but matters where it is, scores as
    high as one that is needed everywhere. An expert that no token was routed to scores 0.

    Args:
        routing: What was observed on the calibration text.

    Returns:
        float32, shape (layers, experts).
    """
    return routing.gated_norms / routing.routed.clamp_min(1)
