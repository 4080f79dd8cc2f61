"""Rounding a matrix for what it computes, to values that nearest rounding keeps.

Calibrated rounding chooses scales that a checkpoint cannot hold: given its values, nearest rounding takes the scale
that spans each block, which is another one in most. Here the choice is among those that come back. Each block has
weights at the end of its type's range, which span it, and its scale is one that the checkpoint's dtype can hold. So
weights can be trained further, and any export of the checkpoint finds these values. Order and errors are those of
`calibrated_rounding` (GPTQ: Frantar et al., arXiv:2210.17323).
"""

from __future__ import annotations

import torch

from .block_values import block_values
from .gguf_quantizations import AFFINE, PLAIN_BLOCK, SYMMETRIC

_SHARES = tuple(1 - 0.025 * step for step in range(13))
"""Shares of a block's span that are tried, from all of it down to 0.7. More than all would leave no weight at the end
of the range, and nearest rounding would take a smaller scale."""

_ROWS = 16_384
"""Rows that are rounded at a time."""


@torch.no_grad()
def kept_values(
    weight: torch.Tensor, carry: torch.Tensor, type_name: str, dtype: torch.dtype, *, trained: bool = False
) -> torch.Tensor:
    """Return a matrix whose nearest values of the type are those that change least of what it computes.

    Args:
        weight: The matrix, shape (rows, columns); columns are a multiple of `PLAIN_BLOCK`.
        carry: How errors are passed on, which `error_carry` finds in its inputs' second moments.
        type_name: One of `PLAIN_TYPES`.
        dtype: The checkpoint's dtype.
        trained: Whether to store what was rounded instead of the values of the type: a training has then less far to
            go to the next value. It carries what is passed on of others' errors, so that a checkpoint of it is further
            from the model in 16 bits than in the type itself; one of the type's values is as near in both.

    Returns:
        In that dtype, of the matrix' shape, on the CPU.
    """
    rows = torch.split(weight.detach(), _ROWS)
    return torch.cat([_rounded(part.float().cpu(), carry, type_name, dtype, trained) for part in rows])


def _rounded(
    weight: torch.Tensor, carry: torch.Tensor, type_name: str, dtype: torch.dtype, trained: bool
) -> torch.Tensor:
    weight = weight.clone()
    found = torch.empty(weight.shape, dtype=dtype)
    for start in range(0, weight.shape[1], PLAIN_BLOCK):
        stop = start + PLAIN_BLOCK
        block, inside = weight[:, start:stop].clone(), carry[start:stop, start:stop]
        stored, errors = _round_block(block, inside, type_name, dtype, trained=trained)
        weight[:, stop:] -= errors @ carry[start:stop, stop:]
        found[:, start:stop] = stored
    return found


def _round_block(
    block: torch.Tensor, carry: torch.Tensor, type_name: str, dtype: torch.dtype, *, trained: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a block column by column.

    Returns:
        What the checkpoint stores, in its dtype, and the errors to pass on, both of the block's shape.
    """
    grid = _best_grid(block, 1 / carry.diagonal().square(), type_name, dtype)
    pinned = grid.ends_at(block)
    codes, errors, reached = torch.zeros_like(block), torch.zeros_like(block), torch.zeros_like(block)
    for column in range(PLAIN_BLOCK):
        exact = block[:, column]
        code = grid.codes(exact)
        for end, at in pinned.items():
            code = torch.where(at == column, torch.full_like(code, end), code)
        codes[:, column], reached[:, column] = code, exact
        errors[:, column] = (exact - grid.given_back(code)) / carry[column, column]
        block[:, column + 1 :] -= errors[:, column : column + 1] * carry[column, column + 1 :]
    centres = grid.stored(codes, dtype)
    if not trained:
        return centres, errors
    low, high = centres.amin(dim=1, keepdim=True), centres.amax(dim=1, keepdim=True)
    near = torch.where(grid.is_end(codes), centres, torch.minimum(torch.maximum(reached.to(dtype), low), high))
    return torch.where(block_values(near, type_name) == grid.given_back(codes), near, centres), errors


class _Grid:
    """The values that each row's block can have.

    Args:
        scale: What nearest rounding finds, in half precision, shape (rows,).
        least: The least value, zero where the type has none.
        ends: Codes at the ends of the range, with what the checkpoint stores for them, shape (rows,) each.
        pinned: Those of these codes that a weight of every block has to have, so that the block has this span.
        limits: The lowest and the highest code.
    """

    def __init__(
        self,
        scale: torch.Tensor,
        least: torch.Tensor,
        ends: dict[int, torch.Tensor],
        pinned: tuple[int, ...],
        limits: tuple[int, int],
    ) -> None:
        self.scale, self.least, self.ends, self.pinned, self.limits = scale, least, ends, pinned, limits

    def codes(self, exact: torch.Tensor) -> torch.Tensor:
        """Return the nearest codes of values, shape (rows,) or (rows, columns)."""
        scale, least = self._as(exact)
        steps = torch.where(scale == 0, torch.ones_like(scale), scale)
        return ((exact - least) / steps).round().clamp(*self.limits)

    def given_back(self, codes: torch.Tensor) -> torch.Tensor:
        """Return what the file gives back."""
        scale, least = self._as(codes)
        return codes * scale + least

    def _as(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.scale, self.least) if like.ndim == 1 else (self.scale[:, None], self.least[:, None])

    def ends_at(self, block: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return the column that gets each pinned code: the one that is nearest to its value."""
        return {code: (block - self.ends[code][:, None]).abs().argmin(dim=1) for code in self.pinned}

    def stored(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return what the checkpoint stores for codes, shape (rows, columns)."""
        found = self.given_back(codes)
        for code, value in self.ends.items():
            found = torch.where(codes == code, value[:, None], found)
        return found.to(dtype)

    def is_end(self, codes: torch.Tensor) -> torch.Tensor:
        """Whether codes are at an end of the range, bool, of their shape."""
        return torch.stack([codes == code for code in self.ends]).any(dim=0)

    def where(self, better: torch.Tensor, other: _Grid) -> _Grid:
        """Return this grid for some rows, and another one for the others."""
        return _Grid(
            torch.where(better, self.scale, other.scale),
            torch.where(better, self.least, other.least),
            {code: torch.where(better, value, other.ends[code]) for code, value in self.ends.items()},
            self.pinned,
            self.limits,
        )


def _best_grid(block: torch.Tensor, weights: torch.Tensor, type_name: str, dtype: torch.dtype) -> _Grid:
    """Return each row's grid: of those that are tried, the one of the least weighted error."""
    best: _Grid | None = None
    least_error = torch.full((len(block),), torch.inf)
    for share in (1.0,) if type_name == "q8_0" else _SHARES:
        tried = _grid(block, share, type_name, dtype)
        error = ((tried.given_back(tried.codes(block)) - block).square() * weights).sum(dim=1)
        best = tried if best is None else tried.where(error < least_error, best)
        least_error = torch.minimum(error, least_error)
    assert best is not None
    return best


def _grid(block: torch.Tensor, share: float, type_name: str, dtype: torch.dtype) -> _Grid:
    """Return the grid that nearest rounding finds in blocks whose span is a share of these blocks'."""
    if type_name in AFFINE:
        low, high = block.amin(dim=1), block.amax(dim=1)
        middle, half = (low + high) / 2, (high - low) / 2
        low, high = _held(middle - share * half, dtype), _held(middle + share * half, dtype)
        most = AFFINE[type_name]
        scale = ((high - low) / most).half().float()
        return _Grid(scale, low.half().float(), {0: low, most: high}, (0, most), (0, most))
    furthest = block.gather(1, block.abs().argmax(dim=1, keepdim=True))[:, 0]
    zero = torch.zeros_like(furthest)
    if type_name == "q8_0":
        end = _held(furthest, dtype)
        scale = (end / 127).half().float()
        return _Grid(scale, zero, {127: end, -127: -end}, (127,), (-127, 127))
    half_range = SYMMETRIC[type_name]
    end = _held(share * furthest, dtype)
    return _Grid(
        (end / -half_range).half().float(), zero, {-half_range: end}, (-half_range,), (-half_range, half_range - 1)
    )


def _held(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return values as a checkpoint holds them."""
    return values.to(dtype).float()
