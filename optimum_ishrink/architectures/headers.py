"""Binding a checkpoint folder from its files alone: config.json and the headers of the weight files.

Neither torch nor transformers is imported, so that a shape can be planned in a fraction of a second. The headers list
every stored tensor with its shape, so a description that fits them all accounts for every parameter of the model, just
as with the model class. If the files leave anything open, None is returned and the model class is needed.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace

from ..errors import ArchitectureError
from .binding import Binding, bind
from .description import describe, is_ignored

_HEADS = ("lm_head.weight", "embed_out.weight")

_HEADER_LIMIT = 100 * 2**20
"""Largest header in bytes; safetensors files do not have larger ones."""


def bind_folder(folder: Path) -> Binding | None:
    """Return the binding of a checkpoint folder, or None if only the model class can give it.

    Args:
        folder: A folder with config.json and safetensors.
    """
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shapes = _stored_shapes(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    if not isinstance(raw, dict) or not shapes or raw.get("quantization_config"):
        return None
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or any(
        isinstance(value, dict) and key.endswith("_config") for key, value in raw.items()
    ):
        return None
    try:
        description = describe(model_type)
        parameters = {name: shape for name, shape in shapes.items() if not is_ignored(description, name)}
        if raw.get("tie_word_embeddings"):  # a stored copy of the tied head is not a parameter
            parameters = {name: shape for name, shape in parameters.items() if name not in _HEADS}
        binding = bind(description, SimpleNamespace(**raw), parameters)
    except (ArchitectureError, TypeError, ValueError, ZeroDivisionError):
        return None
    # Only the config class knows the default of a key that the file does not set.
    absent = [key for key in binding.values if key not in raw]
    complete = {bound.layer for bound in binding.tensors.values()} >= set(range(binding.sizes["layers"]))
    return None if absent or not complete else binding


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
        header.pop("__metadata__", None)
        shapes |= {tensor: tuple(entry["shape"]) for tensor, entry in header.items()}
    return shapes
