"""Architecture descriptions: what the axes of every tensor count, and which config keys hold the counts.

A description is data. Everything that plans, cuts, scores or verifies reads it through a `Binding`, which ties it to
one config and accounts for every tensor of that config's model class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any

from ..errors import ArchitectureError, ShapeError, unknown_name
from .expressions import Axis, evaluate, parse_axes

DIMENSIONS = {
    "num_hidden_layers": "layers",
    "num_key_value_heads": "kv",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn",
}
"""The dimensions that can be asked for: Hugging Face config key to the name of the size in the descriptions."""

_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Dimension:
    """How one dimension is written to the config, or why it cannot change.

    Args:
        writes: Config key to the expression of its new value, over the new sizes.
        fixed: Why this architecture cannot change the dimension; None when it can.
        inexact: Why the cut model is not the original with the removed units at zero; None when it is.
    """

    writes: Mapping[str, str]
    fixed: str | None = None
    inexact: str | None = None


@dataclass(frozen=True)
class Rule:
    """A condition on the config without which its class refuses to load, and the reason in words."""

    require: str
    reason: str


@dataclass(frozen=True)
class ClassChange:
    """Another class that computes the same, for shapes which the own class refuses.

    Args:
        model_type: The other architecture.
        writes: Config keys that it needs, with their values.
        unless: Config keys that must be unset or false, because the other class has nothing like them.
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
        dimensions: For every key of `DIMENSIONS`, how it is written or why it is fixed.
        rules: Conditions that the config class checks.
        per_layer: Config keys whose lists have one entry per layer.
        layer_indices: Config keys whose lists hold layer indices.
        tensors: Tensor name, with `*` for indices, to its axes.
        ignored: Names of stored tensors that carry no parameter (buffers that old versions saved).
        memory: The same as `tensors`, for parameters that are laid out differently in memory than on disk.
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
    def from_json(cls, path: Path) -> Description:
        """Read a description.

        Raises:
            ArchitectureError: The file is not a description; the message names the entry.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            allowed = {entry.name for entry in fields(cls)}
            for key in data:
                if key not in allowed:
                    raise ValueError(unknown_name("entry", key, allowed))
            dimensions = {
                name: Dimension(entry.get("writes", {}), entry.get("fixed"), entry.get("inexact"))
                for name, entry in data["dimensions"].items()
            }
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
    """Add a description from outside the package; it goes before one of the same `model_type` inside.

    Args:
        path: A JSON file in the format of the package's own.

    Raises:
        ArchitectureError: It is no description.
    """
    description = Description.from_json(Path(path))
    _REGISTERED[description.model_type] = description
    return description


def describe(model_type: str) -> Description:
    """Return the description of a `model_type`.

    Raises:
        ArchitectureError: There is none; the message names the nearest and all that exist.
    """
    known = {**descriptions(), **_REGISTERED}
    if model_type not in known:
        raise ArchitectureError(unknown_name("architecture", model_type, known))
    return known[model_type]


@dataclass(frozen=True)
class BoundTensor:
    """One tensor of a model with its axes resolved.

    Args:
        name: Name in the checkpoint.
        axes: What each axis counts.
        layer: Index of its layer, or None outside the layers.
        expert: Index of its expert, or None where experts are not stored one by one.
        transposed: Whether a weight stores (in, out).
    """

    name: str
    axes: tuple[Axis, ...]
    layer: int | None
    expert: int | None = None
    transposed: bool = False

    def counts(self, size: str) -> bool:
        """Whether any axis counts `size`."""
        return any(size in section.factors for axis in self.axes for section in axis)

    def in_layer(self, layer: int) -> str:
        """Return the tensor's name when its layer has the index `layer`."""
        return _INDEX.sub(str(layer), self.name, count=1)


@dataclass(frozen=True)
class Binding:
    """A description tied to one config: every tensor of the model accounted for.

    Args:
        description: The architecture.
        values: The config keys that the description reads, with their values.
        sizes: Every size's value, such as `{"layers": 30, "kv": 3, "heads": 9, "ffn": 1536, ...}`.
        tensors: Every parameter of the model, by name.
    """

    description: Description
    values: Mapping[str, Any]
    sizes: Mapping[str, int]
    tensors: Mapping[str, BoundTensor]

    @property
    def shape(self) -> dict[str, int]:
        """The model's size in each dimension, by config key."""
        return {key: self.sizes[size] for key, size in DIMENSIONS.items() if size in self.sizes}

    def resized(self, shape: Mapping[str, int]) -> dict[str, int]:
        """Return all sizes after a change of shape; query heads that are not named follow their KV groups.

        Args:
            shape: New values by config key; other dimensions that are not named stay.
        """
        sizes = dict(self.sizes)
        sizes.update({DIMENSIONS[key]: value for key, value in shape.items()})
        if "num_attention_heads" not in shape:
            sizes["heads"] = sizes["kv"] * (self.sizes["heads"] // self.sizes["kv"])
        return sizes

    def config_changes(self, shape: Mapping[str, int]) -> dict[str, int]:
        """Return the config keys that a new shape writes, with their values."""
        sizes = self.resized(shape)
        changes: dict[str, int] = {}
        for key, dimension in self.description.dimensions.items():
            if key in shape and shape[key] != self.shape.get(key):
                changes.update({name: evaluate(value, sizes.get) for name, value in dimension.writes.items()})
        return changes

    def refusal(self, shape: Mapping[str, int], *, allow_class_change: bool = False) -> str | None:
        """Return why a shape cannot be expressed, or None when it can.

        Args:
            shape: New values by config key.
            allow_class_change: Whether it may be written as another class that computes the same.
        """
        for key, value in shape.items():
            current = self.shape.get(key)
            if current is None or self.description.dimensions[key].fixed:
                if value != current:
                    reason = self.description.dimensions[key].fixed or "the model has no such dimension"
                    return f"{key} cannot change for {self.description.model_type}: {reason}"
            elif not 1 <= value <= current:
                return f"{key}={value} is not between 1 and the model's {current}"
        sizes = self.resized(shape)
        if sizes["heads"] % sizes["kv"]:
            return f"num_attention_heads={sizes['heads']} cannot be shared by num_key_value_heads={sizes['kv']} evenly"
        broken = self._broken_rule(shape)
        change = self.description.class_change
        if broken is None or change is None or not self.can_change_class:
            return broken
        return None if allow_class_change else f"{broken}; allow_class_change would write it as {change.model_type}"

    def _broken_rule(self, shape: Mapping[str, int]) -> str | None:
        config = {**self.values, **self.config_changes(shape)}
        for rule in self.description.rules:
            if not evaluate(rule.require, config.get):
                return rule.reason
        return None

    @property
    def can_change_class(self) -> bool:
        """Whether another class computes the same for this config."""
        change = self.description.class_change
        return change is not None and not any(self.values.get(key) for key in change.unless)

    def class_change(self, shape: Mapping[str, int]) -> ClassChange | None:
        """Return the other class that a shape has to be written as, or None when the own class takes it."""
        return self.description.class_change if self._broken_rule(shape) is not None else None

    def inexact(self, shape: Mapping[str, int]) -> list[str]:
        """Return the reasons why a cut to this shape is not the original with the removed units at zero."""
        dimensions = self.description.dimensions
        changed = [key for key, value in shape.items() if value != self.shape.get(key)]
        return sorted({dimensions[key].inexact or "" for key in changed} - {""})

    def num_parameters(self, shape: Mapping[str, int] | None = None) -> int:
        """Return the number of parameters at a shape: a sum over the tensors, with no formula of its own.

        Args:
            shape: New values by config key; None for the model as it is. Of the layers, the first ones are counted.
        """
        sizes = self.resized(shape or {})
        return self.outer_parameters(sizes) + sum(self.layer_parameters(sizes)[: sizes["layers"]])

    def outer_parameters(self, sizes: Mapping[str, int]) -> int:
        """Return the number of parameters outside the layers (embeddings, final norm, head)."""
        return sum(_numel(tensor, sizes) for tensor in self.tensors.values() if tensor.layer is None)

    def layer_parameters(self, sizes: Mapping[str, int]) -> list[int]:
        """Return the number of parameters of each of the model's layers, at the given sizes."""
        counts: dict[tuple[tuple[Axis, ...], ...], int] = {}
        for kind in set(self._layer_kinds):
            counts[kind] = sum(prod(axis_length(axis, sizes) for axis in axes) for axes in kind)
        return [counts[kind] for kind in self._layer_kinds]

    @cached_property
    def _layer_kinds(self) -> list[tuple[tuple[Axis, ...], ...]]:
        kinds: list[list[tuple[Axis, ...]]] = [[] for _ in range(self.sizes["layers"])]
        for tensor in self.tensors.values():
            if tensor.layer is not None:
                kinds[tensor.layer].append(tensor.axes)
        return [tuple(kind) for kind in kinds]

    @cached_property
    def in_memory(self) -> Mapping[str, BoundTensor]:
        """The tensors by the names that they have in a loaded model, where these may be laid out differently."""
        bound = dict(self.tensors)
        for pattern, axes in self.description.memory.items():
            for layer in range(self.sizes["layers"]):
                name = pattern.replace("*", str(layer), 1)
                bound[name] = BoundTensor(name, axes, layer)
        return bound

    def layer_tensors(self, layer: int) -> list[BoundTensor]:
        """Return the tensors of one layer."""
        return [tensor for tensor in self.tensors.values() if tensor.layer == layer]


def _numel(tensor: BoundTensor, sizes: Mapping[str, int]) -> int:
    return prod(axis_length(axis, sizes) for axis in tensor.axes)


def axis_length(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Return the length of an axis for the given sizes."""
    return sum(prod(factor_length(factor, sizes) for factor in section.factors) for section in axis)


def factor_length(factor: str, sizes: Mapping[str, int]) -> int:
    """Return the length of one factor: a number stands for itself."""
    return int(factor) if factor.isdigit() else sizes[factor]


def bind(description: Description, config: Any, shapes: Mapping[str, Sequence[int]]) -> Binding:
    """Tie a description to a model.

    Args:
        description: The architecture.
        config: The model's `PreTrainedConfig`.
        shapes: Name and shape of every parameter that the config's model class stores (see `expected_tensors`).

    Returns:
        The binding, with every parameter accounted for.

    Raises:
        ArchitectureError: A parameter has no entry or another shape than its entry says; the message lists them all.
    """
    values: dict[str, Any] = {}

    def lookup(key: str) -> Any:
        values[key] = getattr(config, key, None)
        return values[key]

    try:
        sizes = {name: evaluate(expression, lookup) for name, expression in description.sizes.items()}
    except (TypeError, ZeroDivisionError):
        raise ArchitectureError(
            f"the config lacks a size that {description.model_type} needs: {', '.join(description.sizes.values())}"
        ) from None
    for rule in description.rules:
        evaluate(rule.require, lookup)  # the rules' keys are needed later, for shapes that are not there yet
    for dimension in description.dimensions.values():
        for key in dimension.writes:
            lookup(key)
    for key in description.class_change.unless if description.class_change else ():
        lookup(key)
    if "kv" in sizes and sizes["heads"] % sizes["kv"]:
        raise ArchitectureError(
            f"{sizes['heads']} query heads cannot be shared by {sizes['kv']} key-value heads evenly"
        )

    tensors: dict[str, BoundTensor] = {}
    strangers: list[str] = []
    for name, shape in shapes.items():
        axes = description.tensors.get(_pattern(name))
        if axes is None:
            strangers.append(f"{name} {list(shape)}")
            continue
        try:
            expected = [axis_length(axis, sizes) for axis in axes]
        except (KeyError, TypeError):
            raise ArchitectureError(f"the axes of {name} name a size that {description.model_type} has not") from None
        if list(shape) != expected:
            strangers.append(f"{name} {list(shape)} (described as {expected})")
            continue
        indices = [int(index) for index in _INDEX.findall(name)]
        layer, expert = (*indices, None, None)[:2]
        tensors[name] = BoundTensor(name, axes, layer, expert, _pattern(name) in description.transposed)
    if strangers:
        raise ArchitectureError(
            f"the {description.model_type} description does not account for {len(strangers)} of the model's "
            f"parameters: {'; '.join(sorted(strangers))}"
        )
    return Binding(description, values, sizes, tensors)


def is_ignored(description: Description, name: str) -> bool:
    """Whether a stored tensor is a buffer that carries no parameter."""
    return _pattern(name) in description.ignored


def _pattern(name: str) -> str:
    """Return a tensor's name with `*` for every index."""
    return _INDEX.sub("*", name)


def nearest_expressible(binding: Binding, key: str, value: int, shape: Mapping[str, int]) -> list[int]:
    """Return the nearest values of one dimension, below and above `value`, that the model can express.

    Args:
        binding: The model.
        key: The dimension's config key.
        value: What was asked for.
        shape: The rest of the shape that was asked for.
    """
    fits = [v for v in range(1, binding.shape[key] + 1) if binding.refusal({**shape, key: v}) is None]
    below = [v for v in fits if v < value][-1:]
    above = [v for v in fits if v > value][:1]
    return below + above


def check_shape(binding: Binding, shape: Mapping[str, int], *, allow_class_change: bool = False) -> None:
    """Check that a shape can be expressed.

    Args:
        binding: The model.
        shape: New values by config key.
        allow_class_change: Whether it may be written as another class that computes the same.

    Raises:
        ShapeError: It cannot; the message names the nearest that can.
    """
    reason = binding.refusal(shape, allow_class_change=allow_class_change)
    if reason is None:
        return
    for key, value in shape.items():
        if key not in binding.shape or binding.description.dimensions[key].fixed:
            continue
        rest = {k: min(v, binding.shape[k]) for k, v in shape.items() if k != key and k in binding.shape}
        near = nearest_expressible(binding, key, value, rest)
        if binding.refusal({key: value}) is not None and near:
            raise ShapeError(f"{reason}; nearest {key}: {' or '.join(map(str, near))}")
    raise ShapeError(reason)
