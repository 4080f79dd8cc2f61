"""How errors in a matrix are passed on to the columns that come after, so that what it computes changes least.

The error of one weight can be made up for by those that are changed after it, because inputs are correlated: by the
inverse of their second moments (Optimal Brain Surgeon, as GPTQ, arXiv:2210.17323, and SparseGPT, arXiv:2301.00774,
compute it for all rows at once).
"""

from __future__ import annotations

import torch

DAMPING = 0.01
"""Share of the mean second moment that is added to each: errors are then not passed on along directions that the
calibration text hardly has. The value of the authors of both papers."""


def error_carry(moments: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return how errors are passed on: the upper Cholesky factor of the inverse second moments.

    Args:
        moments: The inputs' second moments on calibration text, a sum or a mean over tokens, all of them finite, shape
            (columns, columns).
        device: Where to solve, in float64, and where the result is.

    Returns:
        float32, shape (columns, columns); row by row, what later columns make up for.
    """
    damped = moments.detach().to(device, torch.float64)
    mean = float(damped.diagonal().mean())
    if not mean > 0:  # nothing was seen: each weight counts the same
        return torch.eye(len(damped), device=device)
    damped = damped / mean
    damping = DAMPING
    identity = torch.eye(len(damped), dtype=torch.float64, device=device)
    while True:
        factor, failed = torch.linalg.cholesky_ex(damped + damping * identity)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            upper: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
            return upper.float()
        damping *= 10
