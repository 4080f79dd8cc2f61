"""Probe files: a smaller model's GGUF file with random weights, made from the base's header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..edge.gguf_file import HeaderValue
from ..edge.gguf_quantizations import PROGRAM_TYPES, TENSOR_TYPES, stored_as
from ..edge.program_types import Rows, quantized_by_program
from .template import KINDS, MERGES, SCORES, TOKENS, Template

if TYPE_CHECKING:
    import numpy as np

_TILE = 2**16
"""Random weights that are repeated: values do not matter for the time, as long as all are finite."""

_ROWS = 256
"""Rows of the random weights where `llama-quantize` writes them: it takes a single row for no matrix."""

_STANDARD_DEVIATION = 0.02


@dataclass(frozen=True)
class KeptTokens:
    """A smaller vocabulary.

    Args:
        rows: The base's rows that stay, ascending.
        merges: The ranks of the base's merges that stay, ascending; None where it has none.
    """

    rows: Sequence[int]
    merges: Sequence[int] | None


def smaller_values(template: Template, shape: Mapping[str, int], tokens: KeptTokens | None) -> list[HeaderValue]:
    """Return the header's values of a smaller model.

    Args:
        template: The base's file.
        shape: The sizes by config key.
        tokens: Its vocabulary; None for the base's.
    """
    sizes, arch = template.binding.resized(shape), template.architecture
    changed: dict[str, Any] = {
        f"{arch}.block_count": sizes["layers"],
        f"{arch}.feed_forward_length": sizes["ffn"],
        f"{arch}.attention.head_count": sizes["heads"],
        f"{arch}.attention.head_count_kv": sizes["kv"],
        f"{arch}.vocab_size": sizes["vocab"],
    }
    lists: dict[str, Any] = {}
    numbers: dict[int, int] = {}
    if tokens is not None:
        numbers = {row: number for number, row in enumerate(tokens.rows)}
        lists = {TOKENS: tokens.rows, KINDS: tokens.rows, SCORES: tokens.rows}
        if tokens.merges is not None:
            lists[MERGES] = tokens.merges
    found = []
    for entry in template.values:
        value = entry.value
        if entry.key in changed and entry.inner is None:
            value = changed[entry.key]
        elif entry.key in changed:  # a value for each layer
            value = value[: sizes["layers"]]
        elif entry.key in lists:
            value = [value[index] for index in lists[entry.key]]
        elif numbers and entry.key.endswith("_token_id"):
            value = numbers.get(value, 0)
        found.append(replace(entry, value=value))
    return found


def write_probe(
    template: Template,
    shape: Mapping[str, int],
    types: Mapping[str, str],
    path: Path,
    tokens: KeptTokens | None = None,
) -> None:
    """Write a smaller model's file with random weights.

    Args:
        template: The base's file.
        shape: The sizes by config key.
        types: Name of the type of each matrix, by its name in the file.
        path: The file.
        tokens: Its vocabulary; None for the base's.
    """
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, template.architecture)
    for entry in smaller_values(template, shape, tokens):
        if entry.key != gguf.Keys.General.ARCHITECTURE:
            writer.add_key_value(entry.key, entry.value, entry.kind, sub_type=entry.inner)
    tensors = template.in_shape(shape)
    draw = np.random.default_rng(0)
    tile = (draw.standard_normal(_TILE) * _STANDARD_DEVIATION).astype(np.float32)
    kinds = []
    for tensor, dims in tensors:
        name = stored_as(
            dims[0] if dims else 1,
            TENSOR_TYPES[types.get(tensor.name, tensor.type) if tensor.is_matrix else tensor.type],
        )
        kind = gguf.GGMLQuantizationType[name.name.upper()]
        kinds.append(kind)
        sizes = dims[::-1]
        if name.name in ("f32", "f16"):
            dtype = np.dtype(np.float32 if name.name == "f32" else np.float16)
            writer.add_tensor_info(tensor.name, sizes, dtype, prod(sizes) * dtype.itemsize, kind)
        else:
            stored = gguf.quant_shape_to_byte_shape(sizes, kind)
            writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), prod(stored), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    tiles: dict[Any, Any] = {}
    for (_, dims), kind in zip(tensors, kinds, strict=True):
        if kind == gguf.GGMLQuantizationType.F32:
            data = np.ones(dims[::-1], dtype=np.float32)
        else:
            if kind not in tiles:
                tiles[kind] = _quantized(tile, kind.name.lower(), path.parent)
            block, nbytes = gguf.GGML_QUANT_SIZES[kind]
            data = np.resize(tiles[kind], prod(dims) // block * nbytes)
        writer.write_tensor_data(data)
    writer.close()


def _quantized(tile: np.ndarray[Any, np.dtype[np.float32]], type_name: str, folder: Path) -> np.ndarray[Any, Any]:
    """Return weights as bytes of a type, uint8, shape (bytes,)."""
    import gguf
    import numpy as np

    if type_name in PROGRAM_TYPES:
        rows: Rows = (tile.reshape(_ROWS, -1), gguf.GGMLQuantizationType.F32)
        with quantized_by_program({"tile": type_name}, lambda _: rows, folder) as written:
            return np.array(written["tile"].data).reshape(-1)
    kind = gguf.GGMLQuantizationType[type_name.upper()]
    stored: np.ndarray[Any, Any] = gguf.quants.quantize(tile[None], kind).reshape(-1).view(np.uint8)
    return stored
