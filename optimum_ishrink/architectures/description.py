"""Architecture descriptions: what the axes of every tensor count, and which config keys hold the counts.

A description is data: one JSON file per family, in this folder or registered from outside the package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ArchitectureError, unknown_name
from .expressions import Axis, parse_axes

LAYERS, GROUPS, NEURONS = "num_hidden_layers", "num_key_value_heads", "intermediate_size"
"""Config keys of the number of layers, of KV groups and of MLP neurons."""

ROWS = "vocab_size"
"""Config key of the number of rows of the embedding, and of the head."""

DIMENSIONS = {LAYERS: "layers", GROUPS: "kv", "num_attention_heads": "heads", NEURONS: "ffn", ROWS: "vocab"}
"""The dimensions that can be changed: Hugging Face config key to the name of the size in the descriptions."""

HEADS = ("lm_head.weight", "embed_out.weight")
"""Names of a language-model head that may be tied to the embedding."""

TIE = "tie_word_embeddings"
"""Config key that ties the head to the embedding."""

INDEX = re.compile(r"(?<=\.)\d+(?=\.)")
"""The index of a layer or an expert in a tensor's name."""


@dataclass(frozen=True)
class Dimension:
    """How one dimension is written to the config, or why it cannot change.

    Args:
        writes: Config key to the expression of its new value, over the new sizes.
        fixed: Why this architecture cannot change the dimension; None when it can.
        inexact: Why the cut model does not equal the original with the removed units set to zero; None if it does.
    """

    writes: Mapping[str, str]
    fixed: str | None = None
    inexact: str | None = None


@dataclass(frozen=True)
class Rule:
    """A condition that the config class requires, and the reason in words."""

    require: str
    reason: str


@dataclass(frozen=True)
class ClassChange:
    """Another class that computes the same function, for shapes that this class refuses.

    Args:
        model_type: The other architecture.
        writes: Config keys that it needs, with their values.
        unless: Config keys that must be unset or false, because the other class does not support them.
    """

    model_type: str
    writes: Mapping[str, Any]
    unless: tuple[str, ...] = ()


@dataclass(frozen=True)
class Description:
    """One architecture, as its JSON file gives it.

    Args:
        model_type: The `model_type` of the configs that it describes.
        models: Well-known models of this architecture, for the support table.
        sizes: Size name to an expression over config keys.
        dimensions: For every key of `DIMENSIONS`, how it is written to the config or why it is fixed.
        rules: Conditions that the config class checks.
        per_layer: Config keys whose lists have one entry per layer.
        layer_indices: Config keys whose lists hold layer indices.
        tensors: Tensor name, with `*` for indices, to its axes.
        ignored: Names of stored tensors that are not parameters (buffers that old versions saved).
        memory: Like `tensors`, for parameters that are laid out differently in memory than on disk.
        transposed: Weights that store (in, out) where a linear layer stores (out, in).
        class_change: Another class for shapes that this one refuses.
    """

    model_type: str
    models: str
    sizes: Mapping[str, str]
    dimensions: Mapping[str, Dimension]
    rules: tuple[Rule, ...]
    per_layer: tuple[str, ...]
    layer_indices: tuple[str, ...]
    tensors: Mapping[str, tuple[Axis, ...]]
    ignored: tuple[str, ...] = ()
    memory: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    class_change: ClassChange | None = None

    @classmethod
    def from_json(cls, path: Path, contents: Mapping[str, Any] | None = None) -> Description:
        """Read a description.

        Args:
            path: The file.
            contents: Its contents, where it is not written yet; None reads them.

        Raises:
            ArchitectureError: The file is not a description; the message names the entry.
        """
        try:
            data = dict(json.loads(path.read_text(encoding="utf-8")) if contents is None else contents)
            allowed = {entry.name for entry in fields(cls)}
            for key in data:
                if key not in allowed:
                    raise ValueError(unknown_name("entry", key, allowed))
            dimensions = {
                name: Dimension(entry.get("writes", {}), entry.get("fixed"), entry.get("inexact"))
                for name, entry in data["dimensions"].items()
            }
            # Descriptions from outside the package may be older than this dimension.
            dimensions.setdefault(ROWS, Dimension({}, fixed=f"its description has no entry {ROWS}"))
            change = data.get("class_change")
            if set(dimensions) != set(DIMENSIONS):
                raise ValueError(f"dimensions must be exactly {', '.join(DIMENSIONS)}")
            return cls(
                model_type=data["model_type"],
                models=data["models"],
                sizes=data["sizes"],
                dimensions=dimensions,
                rules=tuple(Rule(rule["require"], rule["reason"]) for rule in data.get("rules", ())),
                per_layer=tuple(data.get("per_layer", ())),
                layer_indices=tuple(data.get("layer_indices", ())),
                tensors={name: parse_axes(axes) for name, axes in data["tensors"].items()},
                ignored=tuple(data.get("ignored", ())),
                memory={name: parse_axes(axes) for name, axes in data.get("memory", {}).items()},
                transposed=tuple(data.get("transposed", ())),
                class_change=change
                and ClassChange(change["model_type"], change["writes"], tuple(change.get("unless", ()))),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"entry {error} is missing" if isinstance(error, KeyError) else str(error)
            raise ArchitectureError(f"{path} is not an architecture description: {detail}") from None


@cache
def descriptions() -> Mapping[str, Description]:
    """Return every description that ships with the package, by `model_type`."""
    found = (Description.from_json(path) for path in sorted(Path(__file__).parent.glob("*.json")))
    return {description.model_type: description for description in found}


_REGISTERED: dict[str, Description] = {}


def register_architecture(path: str | Path) -> Description:
    """Add a description from outside the package. It takes precedence over the package's for the same `model_type`.

    Args:
        path: A JSON file in the format of those in the package.

    Raises:
        ArchitectureError: The file is not a description.
    """
    description = Description.from_json(Path(path))
    _REGISTERED[description.model_type] = description
    return description


@contextmanager
def registered(description: Description) -> Iterator[None]:
    """Use a description for its `model_type` while the block runs, such as one that is still to be proved.

    Args:
        description: The description.
    """
    name, before = description.model_type, _REGISTERED.get(description.model_type)
    _REGISTERED[name] = description
    try:
        yield
    finally:
        _REGISTERED.pop(name)
        if before is not None:
            _REGISTERED[name] = before


def describe(model_type: str) -> Description:
    """Return the description of a `model_type`.

    Raises:
        ArchitectureError: It is unknown; the message suggests the nearest and lists all.
    """
    known = {**descriptions(), **_REGISTERED}
    if model_type not in known:
        raise ArchitectureError(unknown_name("architecture", model_type, known))
    return known[model_type]


def is_described(model_type: Any) -> bool:
    """Whether a `model_type` has a description, in the package or registered."""
    return model_type in descriptions() or model_type in _REGISTERED


def is_ignored(description: Description, name: str) -> bool:
    """Whether a stored tensor is a buffer, not a parameter."""
    return name_pattern(name) in description.ignored


def name_pattern(name: str) -> str:
    """Return a tensor's name with `*` for every index."""
    return INDEX.sub("*", name)
