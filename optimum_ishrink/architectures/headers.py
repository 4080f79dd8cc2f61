"""Binding a checkpoint folder from its files alone: config.json and the headers of the weight files.

Neither torch nor transformers is imported, so that a shape can be planned in a fraction of a second. The headers list
every stored tensor with its shape, so a description that fits them all accounts for every parameter of the model, just
as with the model class. If the files leave anything open, None is returned and the model class is needed.
"""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import ArchitectureError
from .binding import Binding, bind
from .description import HEADS, Description, describe, is_ignored

_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
"""Dtypes of tensors that can be cut."""

_HEADER_LIMIT = 100 * 2**20
"""Largest header in bytes; safetensors files do not have larger ones."""


def bind_folder(folder: Path) -> Binding | None:
    """Return the binding of a checkpoint folder, or None if only the model class can give it.

    Args:
        folder: A folder with config.json and safetensors.
    """
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (folder / "adapter_config.json").exists():
            return None
        shapes = _stored_shapes(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    if not isinstance(raw, dict) or not shapes or raw.get("quantization_config"):
        return None
    tied, heads = raw.get("tie_word_embeddings"), [name for name in HEADS if name in shapes]
    if not isinstance(tied, bool) or not (tied or heads):  # the class has the default, or the head is missing
        return None
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or any(
        isinstance(value, dict) and key.endswith("_config") for key, value in raw.items()
    ):
        return None
    try:
        description = describe(model_type)
        parameters = {name: shape for name, shape in shapes.items() if not is_ignored(description, name)}
        if tied:  # a stored copy of the tied head is not a parameter
            parameters = {name: shape for name, shape in parameters.items() if name not in HEADS}
        binding = bind(description, SimpleNamespace(**raw), parameters)
        alike = _layers_are_alike(binding, description, raw)
    except (ArchitectureError, TypeError, ValueError, ZeroDivisionError):
        return None
    # Only the config class knows the default of a key that the file does not set.
    absent = [key for key in binding.values if key not in raw]
    return None if absent or not alike else replace(binding, config=None)


def _layers_are_alike(binding: Binding, description: Description, raw: dict[str, Any]) -> bool:
    """Whether every layer holds the same tensors, and every list has one entry per layer.

    Where that is not so, a tensor may be missing, or the layers are of several kinds, and the model class has to tell.
    """
    count = binding.sizes["layers"]
    layers: dict[int | None, set[str]] = {}
    for bound in binding.tensors.values():
        layers.setdefault(bound.layer, set()).add(bound.in_layer(0) if bound.layer is not None else bound.name)
    inner = [names for layer, names in layers.items() if layer is not None]
    lists = [raw[key] for key in description.per_layer if raw.get(key) is not None]
    return (
        layers.keys() >= {None, *range(count)}
        and len(inner) == count
        and all(names == inner[0] for names in inner)
        and all(isinstance(values, list) and len(values) == count for values in lists)
    )


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a folder's weight files, from their headers."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    shapes: dict[str, tuple[int, ...]] = {}
    for name in files:
        if Path(name).name != name:  # an index must not point outside its folder
            raise ValueError(name)
        with (folder / name).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_LIMIT:
                raise ValueError(name)
            header = json.loads(file.read(length))
            size = file.seek(0, 2)
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end != size - 8 - length or any(entry["dtype"] not in _DTYPES for entry in header.values()):
            raise ValueError(name)  # truncated, or quantised: reading the source says what is wrong
        shapes |= {tensor: tuple(entry["shape"]) for tensor, entry in header.items()}
    return shapes
