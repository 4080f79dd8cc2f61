"""Which weights of a matrix become zero, from a score for each."""

from __future__ import annotations

import torch

from ..report.sparsity import Pattern


def least(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return a mask of the lowest scores of each row; of equal ones those that come first.

    Args:
        scores: Shape (..., columns).
        count: How many of each row.

    Returns:
        bool, the same shape, with exactly `count` true in each row.
    """
    order = scores.sort(dim=-1, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


def choose_zeros(scores: torch.Tensor, pattern: Pattern, *, across_rows: bool) -> torch.Tensor:
    """Return which weights become zero: those with the lowest scores.

    Args:
        scores: A score for each weight, shape (out, in).
        pattern: The pattern.
        across_rows: Whether a share is one of the whole matrix; else it is one of each row, which compares weights of
            one output only. Groups are always within a row.

    Returns:
        bool, shape (out, in).
    """
    if pattern.group:
        groups = scores.reshape(len(scores), -1, pattern.group)
        return least(groups, pattern.zeros).flatten(-2)
    if across_rows:
        return least(scores.flatten(), round(pattern.share * scores.numel())).view_as(scores)
    return least(scores, round(pattern.share * scores.shape[-1]))


def magnitude_scores(weight: torch.Tensor) -> torch.Tensor:
    """Return the size of each weight.

    Args:
        weight: Shape (out, in).
    """
    return weight.abs()


def wanda_scores(weight: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Return the size of each weight times the norm of what it multiplies.

    Source: Wanda, arXiv:2306.11695, eq. 1.

    Args:
        weight: Shape (out, in).
        squares: Sum of each input's squares over the calibration text, shape (in,).
    """
    return weight.abs() * squares.sqrt()
