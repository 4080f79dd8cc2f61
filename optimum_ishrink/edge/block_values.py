"""What a GGUF file of blocks gives back for weights, computed in torch, to the bit.

The `gguf` package quantises in numpy, sixteen rows at a time. A training needs these values after every step, on the
weights' own device. Each operation here is that of the package, in its order and in float32, so that rounding falls
the same way; `check_values` compares the two on weights of the model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import RequestError
from ..options.gguf_types import PLAIN_TYPES
from .gguf_quantizations import PLAIN_BLOCK

_CHUNK = 2**18
"""Weights that are rounded at a time: what is in between then stays in the processor's cache."""


def _symmetric(blocks: torch.Tensor, half: int) -> torch.Tensor:
    """Return what q4_0 (half 8) and q5_0 (half 16) give back: a scale times a whole number from -half to half - 1."""
    most, least = blocks.amax(dim=-1, keepdim=True), blocks.amin(dim=-1, keepdim=True)
    furthest = torch.where(most > -least, most, least)
    # Both signs are as far from zero: the first of the block counts.
    tied = (most == -least)[:, 0] & (most != 0)[:, 0]
    if bool(tied.any()):
        among = blocks[tied]
        furthest[tied] = among.gather(1, among.abs().argmax(dim=1, keepdim=True))
    scale = furthest / -half
    codes = (blocks * _inverse(scale)).add_(half + 0.5).trunc_().clamp_(0, 2 * half - 1)
    return codes.sub_(half).mul_(scale.half().float())


def _affine(blocks: torch.Tensor, most_code: int) -> torch.Tensor:
    """Return what q4_1 (15) and q5_1 (31) give back: the least value plus a scale times a whole number up to that."""
    most, least = blocks.amax(dim=-1, keepdim=True), blocks.amin(dim=-1, keepdim=True)
    scale = (most - least) / most_code
    codes = ((blocks - least) * _inverse(scale)).add_(0.5).trunc_().clamp_(0, most_code)
    return codes.mul_(scale.half().float()).add_(least.half().float())


def _eight_bits(blocks: torch.Tensor) -> torch.Tensor:
    """Return what q8_0 gives back: a scale times a whole number, halves rounded away from zero."""
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    exact = blocks * _inverse(scale)
    size = exact.abs()
    whole = size.floor()
    whole += ((size - whole) * 2).floor_()
    return whole.mul_(exact.sign()).mul_(scale.half().float())


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)


_VALUES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "q4_0": lambda blocks: _symmetric(blocks, 8),
    "q5_0": lambda blocks: _symmetric(blocks, 16),
    "q4_1": lambda blocks: _affine(blocks, 15),
    "q5_1": lambda blocks: _affine(blocks, 31),
    "q8_0": _eight_bits,
}
assert set(_VALUES) == set(PLAIN_TYPES)


@torch.no_grad()
def block_values(weight: torch.Tensor, type_name: str) -> torch.Tensor:
    """Return a matrix as a file of a type gives it back, rounded to the nearest values.

    Args:
        weight: Of any shape and float dtype; the last axis is that of a row in the file, a multiple of `PLAIN_BLOCK`.
        type_name: One of `PLAIN_TYPES`, the types that the `gguf` package writes.

    Returns:
        float32, of the same shape, on the same device.
    """
    blocks = weight.detach().reshape(-1, PLAIN_BLOCK)
    values, rows = _VALUES[type_name], max(1, _CHUNK // PLAIN_BLOCK)
    found = torch.empty(blocks.shape, dtype=torch.float32, device=weight.device)
    for start in range(0, len(blocks), rows):
        found[start : start + rows] = values(blocks[start : start + rows].float())
    return found.reshape(weight.shape)


def check_values(weight: torch.Tensor, type_name: str) -> None:
    """Check that the installed `gguf` package rounds some rows of a matrix as `block_values` does.

    Args:
        weight: The rows, as `block_values` takes them.
        type_name: Name of the type.

    Raises:
        RequestError: It does not.
    """
    import gguf

    kind = gguf.GGMLQuantizationType[type_name.upper()]
    rows = weight.detach().to("cpu", torch.float32).contiguous()
    there = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(rows.numpy(), kind), kind))
    if not torch.equal(block_values(rows, type_name), there):
        raise RequestError(
            f"the installed gguf package rounds {type_name} otherwise than recovery_for={type_name!r} trains for; "
            "install a release that optimum-ishrink names: pip install --upgrade 'optimum-ishrink[edge]'"
        )
