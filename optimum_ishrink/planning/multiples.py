"""Multiples of MLP widths that kernels and quantisers need."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ShapeError


def default_multiple(intermediate_size: int) -> int:
    """Return the default multiple of MLP widths: the largest power of two up to 1/32 of the width, at most 256.

    llama.cpp's K-quants need rows of multiples of 256, GPU kernels tile by 128 or 64, and the plain quantisations
    (q8_0, q4_0) have blocks of 32. The limit of 1/32 makes a step at most about 3 % of the neurons: at 1,536 neurons a
    step of 128 would be 5 % of all parameters, too coarse to meet a target, and a step of 32 is 1.2 %.

    Args:
        intermediate_size: Neurons of the model's MLP.
    """
    multiple = 1
    while multiple * 2 <= min(256, intermediate_size // 32):
        multiple *= 2
    return multiple


RUNTIMES = {"llama.cpp": (256, 32)}
"""Runtimes that a shape can be made for, each with the multiples that it needs in a row of weights, the best first.

llama.cpp's K-quants (q4_k_m and their like) share scales among 256 weights, its plain quantisations (q8_0, q4_0) among
32. Only the down projection has rows of MLP neurons; hidden size and heads set those of the other matrices.
"""


def multiples_to_try(intermediate_size: int, intermediate_multiple: int | None, for_runtime: str | None) -> list[int]:
    """Return the multiples that MLP widths can have, the best first.

    Args:
        intermediate_size: Neurons of the model's MLP.
        intermediate_multiple: The requested multiple, or None; it overrides everything else.
        for_runtime: One of `RUNTIMES`, or None.
    """
    if intermediate_multiple:
        return [intermediate_multiple]
    if for_runtime is None:
        return [default_multiple(intermediate_size)]
    return [multiple for multiple in RUNTIMES[for_runtime] if multiple <= intermediate_size] or [1]


def check_multiple(shape: Mapping[str, int], current: int, multiple: int) -> None:
    """Check that a new MLP width is a multiple that kernels and quantisers can use.

    Args:
        shape: The new shape.
        current: The width of the unpruned model, which is always allowed.
        multiple: The required multiple.

    Raises:
        ShapeError: It is not such a multiple; the message names the nearest widths.
    """
    width = shape.get("intermediate_size", current)
    if width == current or width % multiple == 0:
        return
    below, above = width // multiple * multiple, (width // multiple + 1) * multiple
    near = " or ".join(str(value) for value in (below, above) if 0 < value <= current)
    raise ShapeError(
        f"intermediate_size={width} is not a multiple of {multiple}, which kernels and quantisers need; use {near}, "
        "or set intermediate_multiple"
    )
