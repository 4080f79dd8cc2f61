"""Rounding a matrix to a GGUF type so that what it computes on calibration text changes least.

Nearest values change each weight least. What matters is the product with the inputs, and inputs are correlated: the
error of one weight can be made up for by those that are rounded after it. So columns are rounded one by one, and each
error is passed on to the columns that are still exact, by the inverse of the inputs' second moments
(GPTQ: Frantar et al., arXiv:2210.17323, section 3, after Optimal Brain Surgeon). Blocks have GGUF's own scales,
which are found when a block is reached, by the error that each of its columns cannot pass on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .gguf_quantizations import AFFINE, PLAIN_BLOCK, SYMMETRIC

if TYPE_CHECKING:
    import numpy as np

_ROWS = 16_384
"""Rows that are rounded at a time: they do not depend on each other, and the head of a large vocabulary would take
gigabytes."""

_SHARES = tuple(1 - 0.025 * step for step in range(-4, 13))
"""Scales that are tried, as shares of the one that spans a block: 1.1 down to 0.7. Clipping the largest weight costs
less than coarser steps for all others do, in some blocks."""


def calibrated_blocks(weight: torch.Tensor, carry: torch.Tensor, type_name: str) -> np.ndarray[Any, Any]:
    """Return a matrix as a GGUF file stores it, rounded for what it computes.

    Args:
        weight: The matrix, shape (rows, columns); columns are a multiple of `PLAIN_BLOCK`.
        carry: How errors are passed on, which `error_carry` finds: matrices and types that share inputs share it.
        type_name: One of `PLAIN_TYPES`.

    Returns:
        The bytes of each row, uint8, shape (rows, bytes).
    """
    import numpy as np

    parts = [_rounded(rows.float().cpu(), carry, type_name) for rows in torch.split(weight.detach(), _ROWS)]
    return np.concatenate(parts)


def _rounded(weight: torch.Tensor, carry: torch.Tensor, type_name: str) -> np.ndarray[Any, Any]:
    import numpy as np

    weight = weight.clone()
    blocks = []
    for start in range(0, weight.shape[1], PLAIN_BLOCK):
        stop = start + PLAIN_BLOCK
        inside = carry[start:stop, start:stop]
        codes, scale, least, errors = _round_block(weight[:, start:stop].clone(), inside, type_name)
        weight[:, stop:] -= errors @ carry[start:stop, stop:]
        blocks.append(_packed(codes, scale, least, type_name))
    found: np.ndarray[Any, Any] = np.concatenate(blocks, axis=1)
    return found


def _round_block(
    block: torch.Tensor, carry: torch.Tensor, type_name: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round a block column by column.

    Returns:
        Whole numbers of shape (rows, `PLAIN_BLOCK`), scales and least values of shape (rows,), and the errors to pass
        on, of the block's shape.
    """
    low, high = _limits(type_name)
    scale, least = _best_scale(block, 1 / carry.diagonal().square(), type_name)
    steps = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes, errors = torch.zeros_like(block), torch.zeros_like(block)
    for column in range(PLAIN_BLOCK):
        exact = block[:, column]
        codes[:, column] = ((exact - least) / steps).round().clamp(low, high)
        errors[:, column] = (exact - (codes[:, column] * scale + least)) / carry[column, column]
        block[:, column + 1 :] -= errors[:, column : column + 1] * carry[column, column + 1 :]
    return codes, scale, least, errors


def _limits(type_name: str) -> tuple[int, int]:
    if type_name in SYMMETRIC:
        return -SYMMETRIC[type_name], SYMMETRIC[type_name] - 1
    return (0, AFFINE[type_name]) if type_name in AFFINE else (-127, 127)


def _best_scale(block: torch.Tensor, weights: torch.Tensor, type_name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's scale and least value: of those that are tried, the ones of the least weighted error."""
    low, high = _limits(type_name)
    tried = _spans(block, type_name)
    best_scale, best_least = tried[0]
    best = torch.full_like(best_scale, torch.inf)
    for scale, least in tried:
        steps = torch.where(scale == 0, torch.ones_like(scale), scale)[:, None]
        near = ((block - least[:, None]) / steps).round().clamp(low, high) * scale[:, None] + least[:, None]
        error = ((near - block).square() * weights).sum(dim=1)
        better = error < best
        best = torch.where(better, error, best)
        best_scale = torch.where(better, scale, best_scale)
        best_least = torch.where(better, least, best_least)
    return best_scale, best_least


def _spans(block: torch.Tensor, type_name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return scales and least values to try, as the file's half precision holds them, GGUF's own first."""
    zero = torch.zeros(len(block))
    if type_name == "q8_0":  # steps so small that clipping gains nothing
        return [(_half(block.abs().amax(dim=1) / 127), zero)]
    if type_name in AFFINE:
        least, most = block.amin(dim=1), block.amax(dim=1)
        middle, half = (least + most) / 2, (most - least) / 2
        return [
            (_half(2 * share * half / AFFINE[type_name]), _half(middle - share * half)) for share in _own_share_first()
        ]
    furthest = block.gather(1, block.abs().argmax(dim=1, keepdim=True))[:, 0]
    whole = furthest / -SYMMETRIC[type_name]
    return [(_half(share * sign * whole), zero) for sign in (1, -1) for share in _own_share_first()]


def _own_share_first() -> list[float]:
    return sorted(_SHARES, key=lambda share: abs(share - 1))


def _half(values: torch.Tensor) -> torch.Tensor:
    return values.half().float()


def _packed(codes: torch.Tensor, scale: torch.Tensor, least: torch.Tensor, type_name: str) -> np.ndarray[Any, Any]:
    """Return a block's bytes for each row, in ggml's layout (`ggml-common.h`), shape (rows, bytes)."""
    import numpy as np

    def bytes_of(values: torch.Tensor, kind: str) -> np.ndarray[Any, Any]:
        return np.ascontiguousarray(values.numpy().astype(kind)).view(np.uint8).reshape(len(values), -1)

    parts = [bytes_of(scale, "<f2")]
    if type_name == "q8_0":
        return np.concatenate([*parts, bytes_of(codes, "i1")], axis=1)
    if type_name in AFFINE:
        parts.append(bytes_of(least, "<f2"))
    whole = (codes + SYMMETRIC.get(type_name, 0)).to(torch.int64)
    if type_name.startswith("q5"):
        fifth = ((whole >> 4) << torch.arange(PLAIN_BLOCK)).sum(dim=1)
        parts.append(bytes_of(fifth, "<u4"))
    low = whole & 15
    parts.append(bytes_of(low[:, : PLAIN_BLOCK // 2] | low[:, PLAIN_BLOCK // 2 :] << 4, "u1"))
    return np.concatenate(parts, axis=1)
