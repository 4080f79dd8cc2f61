"""Which matrices of a model do not fit a quantisation, what is stored instead, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ..architectures.binding import Binding, BoundTensor
from ..architectures.expressions import axis_length
from ..core.table import Row
from ..errors import ShapeError
from .gguf_quantizations import TENSOR_TYPES, GgufQuantization, TensorType, nearest_multiples, stored_as

_DIMENSION_OF = {"ffn": "intermediate_size", "heads": "num_attention_heads", "hidden": "hidden_size"}


@dataclass(frozen=True)
class Matrices:
    """The matrices of a model that share a name and a row length.

    Args:
        name: Their name, with `*` for the layer and expert.
        row: Weights in a row, which llama.cpp divides into blocks.
        counted_by: Config key that sets the row length; None where none does.
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

    Norms, biases and learned positions stay in f32 and are not included.

    Args:
        binding: The model.
        shape: New sizes by config key; None for the model as it is. With fewer layers, the first ones are counted.
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


def check_rows(binding: Binding, quantization: GgufQuantization, shape: Mapping[str, int] | None = None) -> None:
    """Check that every matrix can be stored as a quantisation of blocks of 32 weights.

    K-quants may fall back to another quantisation, which costs little and is reported. A row that fits none would be
    stored in 16 bits, which is not what was requested.

    Args:
        binding: The model.
        quantization: The requested quantisation.
        shape: New sizes by config key; None for the model as it is.

    Raises:
        ShapeError: A row does not fit; the message names the nearest widths that do.
    """
    for found in matrices(binding, shape):
        if quantization.is_exact or stored_as(found.row, quantization.tensor_type).block > 1:
            continue
        block = 32
        hint = width_hint(found.counted_by, found.row, block, "export f16, which takes any width")
        raise ShapeError(
            f"{quantization.name} needs rows that are multiples of {block}, and those of {found.name} have "
            f"{found.row:,} weights; {hint}"
        )


def width_hint(counted_by: str | None, row: int, block: int, alternative: str) -> str:
    """Return a line that says what to do about a row that is not a multiple of a block.

    Args:
        counted_by: Config key that sets the row length; None where none does.
        row: Weights in the row.
        block: Weights in a block.
        alternative: What to export instead.
    """
    near = " or ".join(f"{value:,}" for value in nearest_multiples(row, block))
    if counted_by == "intermediate_size":
        return f"the nearest intermediate_size that fits is {near}; shrink to that, or {alternative}"
    if counted_by == "num_attention_heads":
        return f"heads times head_dim would have to be {near}; {alternative}"
    return f"the nearest is {near}, and pruning does not change this width; {alternative}"


FALLBACK_HEADER: Row = ("matrices", "row", "requested", "stored as", "extra bytes", "nearest rows that fit")


def fallback_rows(binding: Binding, shape: Mapping[str, int], requested: TensorType) -> list[Row]:
    """Return the rows of a table, under `FALLBACK_HEADER`, of the matrices that fall back at a shape.

    Args:
        binding: The model.
        shape: The new shape.
        requested: The type requested for every matrix.
    """
    rows: list[Row] = []
    for found in matrices(binding, shape):
        stored = stored_as(found.row, requested)
        if stored is requested:
            continue
        ideal = found.weights * requested.nbytes / requested.block
        extra = stored.size(found.weights) - ideal
        near = " or ".join(f"{value:,}" for value in nearest_multiples(found.row, requested.block))
        can_move = found.counted_by in ("intermediate_size", "num_attention_heads")
        rows.append(
            (
                f"{found.count} x {found.name}",
                f"{found.row:,}",
                requested.name,
                stored.name,
                f"{extra:,.0f} (+{extra / ideal:.0%})",
                near if can_move else "pruning does not change it",
            )
        )
    return rows


def fallback_cost(binding: Binding, shape: Mapping[str, int], requested: TensorType) -> tuple[int, int]:
    """Return the bytes of all matrices at a shape as llama.cpp stores them, and how many of these fallbacks add.

    Args:
        binding: The model.
        shape: The new shape.
        requested: The type requested for every matrix.
    """
    stored = sum(stored_as(found.row, requested).size(found.weights) for found in matrices(binding, shape))
    ideal = sum(found.weights * requested.nbytes / requested.block for found in matrices(binding, shape))
    return stored, round(stored - ideal)


def runtime_table(binding: Binding, shape: Mapping[str, int]) -> tuple[list[Row], list[str]]:
    """Return the rows of a table of what falls back at a shape, and a line for each quantisation with the total cost.

    Two represent all: q4_k the K-quants, which need rows in multiples of 256, and q8_0 the plain ones, which need 32.

    Args:
        binding: The model.
        shape: The new shape.
    """
    rows: list[Row] = []
    lines = []
    for name in ("q4_k", "q8_0"):
        requested = TENSOR_TYPES[name]
        found = fallback_rows(binding, shape, requested)
        stored, extra = fallback_cost(binding, shape, requested)
        rows += found
        lines.append(
            f"{name}: {len(found)} kinds of matrices fall back, which adds {extra:,} bytes to {stored - extra:,}"
            if found
            else f"{name}: every row is a multiple of {requested.block}, nothing falls back"
        )
    return rows, lines
