"""Zeros that the other weights make up for, in closed form.

Columns are handled from first to last. A weight that becomes zero changes what its row computes, and the weights of
its row that come after it are updated so that this changes least on the calibration text: Optimal Brain Surgeon with
the inverse second moments of the inputs, which all rows share. Which weights become zero is decided when their group,
or block of columns, is reached, by the error that could not be made up for.

Source: SparseGPT, arXiv:2301.00774, algorithm 1.
"""

from __future__ import annotations

import torch

from ..report.sparsity import Pattern
from .choosing import least

_BLOCK = 128
"""Columns between two updates of all that come after; a share is one of each such block. The value of the authors."""


def sparse_weight(weight: torch.Tensor, carry: torch.Tensor, pattern: Pattern) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix with zeros, its other weights updated, and where the zeros are.

    Args:
        weight: float32, shape (out, in).
        carry: How errors are passed on, from `modeling.error_carry`, on the same device, shape (in, in).
        pattern: The pattern.

    Returns:
        The new weight, and a mask of what became zero, both of the shape of the weight.
    """
    weight = weight.clone()
    removed = torch.zeros_like(weight, dtype=torch.bool)
    rows, columns = weight.shape
    diagonal = carry.diagonal()
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        block, chosen = weight[:, start:stop], removed[:, start:stop]
        inside, own = carry[start:stop, start:stop], diagonal[start:stop]
        if not pattern.group:
            # Rounded over all columns so far, so that the whole matrix has the share exactly.
            count = round(pattern.share * rows * stop) - round(pattern.share * rows * start)
            chosen.copy_(least((block / own).square().flatten(), count).view_as(block))
        errors = torch.zeros_like(block)
        for column in range(stop - start):
            if pattern.group and column % pattern.group == 0:
                part = slice(column, column + pattern.group)
                chosen[:, part] = least((block[:, part] / own[part]).square(), pattern.zeros)
            error = torch.where(chosen[:, column], block[:, column], 0.0) / own[column]
            block[:, column + 1 :] -= error[:, None] * inside[column, column + 1 :]
            errors[:, column] = error
        weight[:, stop:] -= errors @ carry[start:stop, stop:]
    return weight.masked_fill_(removed, 0.0), removed


def lost_energy(weight: torch.Tensor, new: torch.Tensor, moments: torch.Tensor) -> float:
    """Return the energy of the change of a matrix's outputs, as a share of that of its outputs.

    Args:
        weight: The weight as it was, shape (out, in).
        new: The weight as it is.
        moments: The inputs' second moments, shape (in, in).
    """
    change = new - weight
    lost = ((change @ moments) * change).sum(dtype=torch.float64)
    return float(lost / ((weight @ moments) * weight).sum(dtype=torch.float64).clamp_min(1e-30))
