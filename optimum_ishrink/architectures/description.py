"""Architecture descriptions: what the axes of every tensor count, and which config keys hold the counts.

A description is data: one JSON file per family, in this folder or registered from outside the package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ArchitectureError, unknown_name
from .expressions import Axis, evaluate, parse_axes
from .layer_sizes import SizesOfKind
from .shared_kv import SharedKV

LAYERS, GROUPS, NEURONS = "num_hidden_layers", "num_key_value_heads", "intermediate_size"
"""Config keys of the number of layers, of KV groups and of MLP neurons."""

ROWS = "vocab_size"
"""Config key of the number of rows of the embedding, and of the head."""

EXPERTS, TOP_K = "num_experts", "num_experts_per_tok"
"""Names of the number of experts, and of how many each token is routed to. A model's own config keys may differ."""

DIMENSIONS = {
    LAYERS: "layers",
    GROUPS: "kv",
    "num_attention_heads": "heads",
    NEURONS: "ffn",
    EXPERTS: "experts",
    TOP_K: "top_k",
    ROWS: "vocab",
}
"""The dimensions that can be changed: Hugging Face config key to the name of the size in the descriptions."""

_OPTIONAL = (EXPERTS, TOP_K, ROWS)
"""Dimensions that a description need not have: not all models have experts, and older files have no such entry."""

HEADS = ("lm_head.weight", "embed_out.weight", "output_projection.weight", "decoder.weight")
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
        when: An expression over config keys and sizes, for models of the architecture that differ in this: only where
            it holds is the dimension fixed or inexact. Empty where it always is.
    """

    writes: Mapping[str, str]
    fixed: str | None = None
    inexact: str | None = None
    when: str = ""


@dataclass(frozen=True)
class Rule:
    """A condition that the config class requires, and the reason in words."""

    require: str
    reason: str


@dataclass(frozen=True)
class JoinedLayers:
    """Why the layers of an architecture cannot be run one by one, each on nothing but the output of the last.

    Args:
        reason: Why, as a clause.
        when: An expression over config keys, for architectures of which only some models are like that; empty for all.
    """

    reason: str
    when: str = ""


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
        dimensions: For every key of `DIMENSIONS`, how it is written to the config or why it is fixed. Those of experts
            and of the vocabulary are fixed where the file leaves them out.
        rules: Conditions that the config class checks.
        per_layer: Config keys whose lists have one entry per layer.
        layer_indices: Config keys whose lists hold layer indices, to the index that they give the first layer; a dot
            leads into an object.
        tensors: Tensor name, with `*` for indices, to its axes. An index that is a number stands for itself: one of a
            sequence of unlike modules, or of one that is no sequence of layers.
        by_layer: Other sizes of layers of one kind, such as larger heads where a layer sees all tokens.
        follows: Size name to the size that it changes with where both are equal, such as the rows of a second
            embedding.
        shared_kv: How the config says which layers read the keys and values of another.
        required_layers: Expressions over sizes: indices of layers that a cut retains, because the class builds them in
            another way than the others.
        joined_layers: Why layers cannot be run one by one; None where they can.
        modules: Name of a module in the checkpoint to its name in a loaded model, with `*` for indices, where
            transformers renames modules as it loads them.
        layer_runs: Config key to the name of a list with one entry per layer, which the config class spells out from
            that key's pairs of a list and how often it repeats.
        ignored: Names of stored tensors that are not parameters (buffers that old versions saved).
        memory: Like `tensors`, for parameters that are laid out differently in memory than on disk.
        transposed: Weights that store (in, out) where a linear layer stores (out, in).
        class_change: Another class for shapes that this one refuses.
        periods: Pairs of config keys, a period and an offset, that say which layers are of a kind.
        needed_kinds: Kinds of `layer_types` of which the config class demands a layer.
        variants: Conditions over config keys, each with the description of the models for which it is true.
    """

    model_type: str
    models: str
    sizes: Mapping[str, str]
    dimensions: Mapping[str, Dimension]
    rules: tuple[Rule, ...]
    per_layer: tuple[str, ...]
    layer_indices: Mapping[str, int]
    tensors: Mapping[str, tuple[Axis, ...]]
    ignored: tuple[str, ...] = ()
    memory: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    class_change: ClassChange | None = None
    variants: tuple[tuple[str, Description], ...] = ()
    periods: tuple[tuple[str, str], ...] = ()
    needed_kinds: tuple[str, ...] = ()
    joined_layers: JoinedLayers | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    layer_runs: Mapping[str, str] = field(default_factory=dict)
    by_layer: tuple[SizesOfKind, ...] = ()
    follows: Mapping[str, str] = field(default_factory=dict)
    shared_kv: SharedKV | None = None
    required_layers: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, path: Path, contents: Mapping[str, Any] | None = None) -> Description:
        """Read a description.

        Args:
            path: The file.
            contents: Its contents, or what they come to for one variant; None reads them.

        Raises:
            ArchitectureError: The file is not a description; the message names the entry.
        """
        try:
            data = dict(json.loads(path.read_text(encoding="utf-8")) if contents is None else contents)
            parts = [(part["when"], _with_changes(data, part)) for part in data.pop("variants", ())]
            allowed = {entry.name for entry in fields(cls)}
            for key in data:
                if key not in allowed:
                    raise ValueError(unknown_name("entry", key, allowed))
            dimensions = {
                name: Dimension(
                    entry.get("writes", {}), entry.get("fixed"), entry.get("inexact"), entry.get("when", "")
                )
                for name, entry in data["dimensions"].items()
            }
            for key in _OPTIONAL:
                has_none = key != ROWS and "experts" not in data["sizes"]
                reason = "the model has no experts" if has_none else f"its description has no entry {key}"
                dimensions.setdefault(key, Dimension({}, fixed=reason))
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
                layer_indices=_layer_indices(data.get("layer_indices", ())),
                tensors={name: parse_axes(axes) for name, axes in data["tensors"].items()},
                ignored=tuple(data.get("ignored", ())),
                memory={name: parse_axes(axes) for name, axes in data.get("memory", {}).items()},
                transposed=tuple(data.get("transposed", ())),
                class_change=change
                and ClassChange(change["model_type"], change["writes"], tuple(change.get("unless", ()))),
                periods=tuple((period, offset) for period, offset in data.get("periods", ())),
                needed_kinds=tuple(data.get("needed_kinds", ())),
                variants=tuple((when, cls.from_json(path, values)) for when, values in parts),
                joined_layers=JoinedLayers(**data["joined_layers"]) if "joined_layers" in data else None,
                modules=data.get("modules", {}),
                layer_runs=data.get("layer_runs", {}),
                by_layer=tuple(SizesOfKind(**entry) for entry in data.get("by_layer", ())),
                follows=data.get("follows", {}),
                shared_kv=SharedKV(**data["shared_kv"]) if "shared_kv" in data else None,
                required_layers=tuple(data.get("required_layers", ())),
            )
        except ArchitectureError:  # a variant's, which names the file already
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"entry {error} is missing" if isinstance(error, KeyError) else str(error)
            raise ArchitectureError(f"{path} is not an architecture description: {detail}") from None

    def for_config(self, lookup: Callable[[str], Any]) -> Description:
        """Return the description of the models of one config: that of the first variant whose condition is true.

        Args:
            lookup: Returns the value of a config key, or None.
        """
        return next((variant for when, variant in self.variants if evaluate(when, lookup)), self)


def _with_changes(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a variant: its own beside the family's, without those that it sets to null.

    A list, or an object without entries, stands for the family's as a whole.
    """
    merged = dict(data)
    for name, entry in changes.items():
        if isinstance(entry, dict) and entry:
            both = {**data.get(name, {}), **entry}
            merged[name] = {key: value for key, value in both.items() if value is not None}
        elif name != "when":
            merged[name] = entry
    return merged


def _layer_indices(entry: Sequence[str] | Mapping[str, int]) -> dict[str, int]:
    return dict(entry) if isinstance(entry, Mapping) else dict.fromkeys(entry, 0)


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


def describe(model_type: str) -> Description:
    """Return the description of a `model_type`.

    Raises:
        ArchitectureError: It is unknown; the message suggests the nearest and lists all.
    """
    known = {**descriptions(), **_REGISTERED}
    if model_type not in known:
        raise ArchitectureError(unknown_name("architecture", model_type, known))
    return known[model_type]


def is_ignored(description: Description, name: str) -> bool:
    """Whether a stored tensor is a buffer, not a parameter."""
    return name_pattern(name) in description.ignored


def name_pattern(name: str) -> str:
    """Return a tensor's name with `*` for every index."""
    return INDEX.sub("*", name)


def entry_of(description: Description, name: str) -> str:
    """Return the entry of a tensor: its name, or with `*` for its layer alone if there is one, or for every index."""
    entries = (name, INDEX.sub("*", name, count=1))
    return next((entry for entry in entries if entry in description.tensors), name_pattern(name))


def loaded_name(description: Description, entry: str, indices: Sequence[int]) -> str | None:
    """Return a parameter's name in a loaded model, or None where it is the checkpoint's.

    Args:
        description: The architecture.
        entry: The tensor's entry.
        indices: What its stars stand for.
    """
    module, _, name = entry.rpartition(".")
    if module not in description.modules:
        return None
    loaded = f"{description.modules[module]}.{name}"
    for index in indices:
        loaded = loaded.replace("*", str(index), 1)
    return loaded
