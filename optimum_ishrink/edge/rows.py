"""Which matrices of a model a quantisation does not fit, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ..architectures.spec import Binding, BoundTensor, axis_length
from ..errors import ShapeError
from .quantization import TENSOR_TYPES, Quantization, TensorType, nearest_multiples, stored_as

Row = tuple[str, ...]

_DIMENSION_OF = {"ffn": "intermediate_size", "heads": "num_attention_heads", "hidden": "hidden_size"}


@dataclass(frozen=True)
class Matrices:
    """The matrices of a model that share a name and a row length.

    Args:
        name: Their name, with `*` for the layer and expert.
        row: Weights in a row: what llama.cpp cuts into blocks.
        counted_by: Config key that the row length follows, as far as it follows one.
        count: How many there are.
        weights: Weights in all of them.
    """

    name: str
    row: int
    counted_by: str | None
    count: int
    weights: int


def matrices(binding: Binding, shape: Mapping[str, int] | None = None) -> tuple[Matrices, ...]:
    """Return every matrix that a quantiser touches, in the order of the model.

    Norms, biases and learned positions stay in f32 and are left out.

    Args:
        binding: The model.
        shape: New sizes by config key; None for the model as it is. Of the layers, the first ones are counted.
    """
    sizes = binding.resized(shape or {})
    found: dict[tuple[str, int], Matrices] = {}
    for tensor in binding.tensors.values():
        outside = tensor.layer is not None and tensor.layer >= sizes["layers"]
        if outside or not _is_matrix(tensor):
            continue
        row_axis = tensor.axes[-2 if tensor.transposed else -1]
        row = axis_length(row_axis, sizes)
        weights = prod(axis_length(axis, sizes) for axis in tensor.axes)
        factors = {factor for section in row_axis for factor in section.factors}
        counted_by = next((key for size, key in _DIMENSION_OF.items() if size in factors), None)
        name = ".".join("*" if part.isdigit() else part for part in tensor.name.split("."))
        before = found.get((name, row), Matrices(name, row, counted_by, 0, 0))
        found[name, row] = Matrices(name, row, counted_by, before.count + 1, before.weights + weights)
    return tuple(found.values())


def _is_matrix(tensor: BoundTensor) -> bool:
    return len(tensor.axes) > 1 and not tensor.counts("positions") and "norm" not in tensor.name.split(".")[-2]


def check_rows(binding: Binding, quantization: Quantization) -> None:
    """Check that every matrix can be stored as a quantisation of blocks of 32 weights.

    K-quants may fall back on another quantisation, which costs little and is said; what no quantisation fits would be
    stored in 16 bits, which is not what was asked for.

    Args:
        binding: The model.
        quantization: What is asked for.

    Raises:
        ShapeError: A row does not fit; the message names the nearest width that does.
    """
    for found in matrices(binding):
        if quantization.is_exact or stored_as(found.row, quantization.tensor_type).block > 1:
            continue
        block = 32
        hint = width_hint(found.counted_by, found.row, block, "export f16, which takes any width")
        raise ShapeError(
            f"{quantization.name} wants rows that are multiples of {block}, and those of {found.name} have "
            f"{found.row:,} weights; {hint}"
        )


def width_hint(counted_by: str | None, row: int, block: int, otherwise: str) -> str:
    """Return what to do about a row that is no multiple of a block, in words.

    Args:
        counted_by: Config key that the row length follows, as far as it follows one.
        row: Weights in the row.
        block: Weights in a block.
        otherwise: What to export instead.
    """
    near = " or ".join(f"{value:,}" for value in nearest_multiples(row, block))
    if counted_by == "intermediate_size":
        return f"the nearest intermediate_size that does is {near}; shrink to that, or {otherwise}"
    if counted_by == "num_attention_heads":
        return f"heads times head_dim would have to be {near}; {otherwise}"
    return f"the nearest is {near}, and pruning does not change this width; {otherwise}"


FALLBACK_HEADER: Row = ("matrices", "row", "asked for", "stored as", "bytes more", "nearest rows that fit")


def fallback_rows(binding: Binding, shape: Mapping[str, int], wanted: TensorType) -> list[Row]:
    """Return (matrices, row, asked for, stored as, bytes more, nearest rows) for what falls back at a shape.

    Args:
        binding: The model.
        shape: The new shape.
        wanted: What every matrix is asked to be stored as.
    """
    rows: list[Row] = []
    for found in matrices(binding, shape):
        stored = stored_as(found.row, wanted)
        if stored is wanted:
            continue
        ideal = found.weights * wanted.nbytes / wanted.block
        more = stored.size(found.weights) - ideal
        near = " or ".join(f"{value:,}" for value in nearest_multiples(found.row, wanted.block))
        can_move = found.counted_by in ("intermediate_size", "num_attention_heads")
        rows.append(
            (
                f"{found.count} x {found.name}",
                f"{found.row:,}",
                wanted.name,
                stored.name,
                f"{more:,.0f} (+{more / ideal:.0%})",
                near if can_move else "pruning does not change it",
            )
        )
    return rows


def fallback_cost(binding: Binding, shape: Mapping[str, int], wanted: TensorType) -> tuple[int, int]:
    """Return the bytes of all matrices at a shape as llama.cpp stores them, and how many of these are fallbacks' cost.

    Args:
        binding: The model.
        shape: The new shape.
        wanted: What every matrix is asked to be stored as.
    """
    stored = sum(stored_as(found.row, wanted).size(found.weights) for found in matrices(binding, shape))
    ideal = sum(found.weights * wanted.nbytes / wanted.block for found in matrices(binding, shape))
    return stored, round(stored - ideal)


def runtime_table(binding: Binding, shape: Mapping[str, int]) -> tuple[list[Row], list[str]]:
    """Return the rows of what falls back at a shape, and what that amounts to in words.

    Two stand for all: q4_k for the K-quants, which want rows of 256, and q8_0 for the plain ones, which want 32.

    Args:
        binding: The model.
        shape: The new shape.
    """
    rows: list[Row] = []
    lines = []
    for name in ("q4_k", "q8_0"):
        wanted = TENSOR_TYPES[name]
        found = fallback_rows(binding, shape, wanted)
        stored, more = fallback_cost(binding, shape, wanted)
        rows += found
        lines.append(
            f"{name}: {len(found)} kinds of matrices fall back, which costs {more:,} of {stored:,} bytes"
            if found
            else f"{name}: every row is a multiple of {wanted.block}, nothing falls back"
        )
    return rows, lines
