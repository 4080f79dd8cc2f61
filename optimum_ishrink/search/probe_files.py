"""Probe files: a smaller model's GGUF file with random weights, made from the base's header."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..edge.gguf_file import HeaderValue
from ..edge.gguf_quantizations import PROGRAM_TYPES, TENSOR_TYPES, stored_as
from ..edge.program_types import Rows, quantized_by_program
from .layout import KeptTokens
from .probe_weights import append_weights
from .template import KINDS, MERGES, PRE_TOKENIZER, SCORES, TOKENS, Template

if TYPE_CHECKING:
    import numpy as np

_TILE = 2**16
"""Random weights that are repeated: values do not matter for the time, as long as all are finite."""

_ROWS = 256
"""Rows of the random weights where `llama-quantize` writes them: it takes a single row for no matrix."""

_STANDARD_DEVIATION = 0.02


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
        elif numbers and entry.key == PRE_TOKENIZER:
            value = template.renamed_pre_tokenizer
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
    parts = write_header(template, shape, types, path, tokens)
    append_weights(path, parts, random_tiles({name for name, _ in parts}, path.parent))


def write_header(
    template: Template,
    shape: Mapping[str, int],
    types: Mapping[str, str],
    path: Path,
    tokens: KeptTokens | None = None,
) -> list[tuple[str, int]]:
    """Write the header of a smaller model's file, and return the tensors that follow: their types and bytes.

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
    parts = []
    for tensor, dims in template.in_shape(shape):
        requested = types.get(tensor.name, tensor.type) if tensor.is_matrix else tensor.type
        found = stored_as(dims[0] if dims else 1, TENSOR_TYPES[requested])
        kind = gguf.GGMLQuantizationType[found.name.upper()]
        stored = gguf.quant_shape_to_byte_shape(dims[::-1], kind)
        writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), prod(stored), kind)
        parts.append((found.name, prod(stored)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return parts


def random_tiles(types: Collection[str], folder: Path) -> dict[str, bytes]:
    """Return random weights to repeat, in each type; what is in f32 is a norm, and one everywhere.

    Args:
        types: Names of the types.
        folder: Where llama.cpp's program writes, for types that it alone writes.
    """
    import numpy as np

    draw = np.random.default_rng(0)
    weights = (draw.standard_normal(_TILE) * _STANDARD_DEVIATION).astype(np.float32)
    found = {}
    for name in sorted(types):
        values = np.ones_like(weights) if name == "f32" else weights
        found[name] = _quantized(values, name, folder).tobytes()
    return found


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
