"""Architecture descriptions: what the axes of every tensor count, and which config keys hold the counts.

A description is data. Everything that plans, cuts, scores or verifies reads it through a `Binding`, which ties it to
one config and accounts for every tensor of that config's model class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any

from ..errors import ArchitectureError, ShapeError, unknown_name
from .expressions import Axis, evaluate, parse_axes

DIMENSIONS = {
    "num_hidden_layers": "layers",
    "num_key_value_heads": "kv",
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
    """

    writes: Mapping[str, str]
    fixed: str | None = None


@dataclass(frozen=True)
class Rule:
    """A condition on the config without which its class refuses to load, and the reason in words."""

    require: str
    reason: str


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

    @classmethod
    def from_json(cls, path: Path) -> Description:
        """Read a description.

        Raises:
            ArchitectureError: The file is not a description; the message names the entry.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            allowed = {"model_type", "models", "sizes", "dimensions", "rules", "per_layer", "layer_indices", "tensors"}
            for key in data:
                if key not in allowed | {"ignored"}:
                    raise ValueError(unknown_name("entry", key, allowed))
            dimensions = {
                name: Dimension(entry.get("writes", {}), entry.get("fixed"))
                for name, entry in data["dimensions"].items()
            }
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
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"entry {error} is missing" if isinstance(error, KeyError) else str(error)
            raise ArchitectureError(f"{path} is not an architecture description: {detail}") from None


@cache
def descriptions() -> Mapping[str, Description]:
    """Return every description that ships with the package, by `model_type`."""
    found = (Description.from_json(path) for path in sorted(Path(__file__).parent.glob("*.json")))
    return {description.model_type: description for description in found}


def describe(model_type: str) -> Description:
    """Return the description of a `model_type`.

    Raises:
        ArchitectureError: There is none; the message names the nearest and all that exist.
    """
    known = descriptions()
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
    """

    name: str
    axes: tuple[Axis, ...]
    layer: int | None

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
        """Return all sizes after a change of shape; the query heads follow their KV groups.

        Args:
            shape: New values by config key; dimensions that are not named stay.
        """
        sizes = dict(self.sizes)
        sizes.update({DIMENSIONS[key]: value for key, value in shape.items()})
        if "kv" in sizes:
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

    def refusal(self, shape: Mapping[str, int]) -> str | None:
        """Return why a shape cannot be expressed, or None when it can.

        Args:
            shape: New values by config key.
        """
        for key, value in shape.items():
            current = self.shape.get(key)
            if current is None or self.description.dimensions[key].fixed:
                if value != current:
                    reason = self.description.dimensions[key].fixed or "the model has no such dimension"
                    return f"{key} cannot change for {self.description.model_type}: {reason}"
            elif not 1 <= value <= current:
                return f"{key}={value} is not between 1 and the model's {current}"
        config = {**self.values, **self.config_changes(shape)}
        for rule in self.description.rules:
            if not evaluate(rule.require, config.get):
                return rule.reason
        return None

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
    if "kv" in sizes and sizes["heads"] % sizes["kv"]:
        raise ArchitectureError(
            f"{sizes['heads']} query heads cannot be shared by {sizes['kv']} key-value heads evenly"
        )

    tensors: dict[str, BoundTensor] = {}
    strangers: list[str] = []
    for name, shape in shapes.items():
        axes = description.tensors.get(_INDEX.sub("*", name))
        if axes is None:
            strangers.append(f"{name} {list(shape)}")
            continue
        expected = [axis_length(axis, sizes) for axis in axes]
        if list(shape) != expected:
            strangers.append(f"{name} {list(shape)} (described as {expected})")
            continue
        index = _INDEX.search(name)
        tensors[name] = BoundTensor(name, axes, int(index.group()) if index else None)
    if strangers:
        raise ArchitectureError(
            f"the {description.model_type} description does not account for {len(strangers)} of the model's "
            f"parameters: {'; '.join(sorted(strangers))}"
        )
    return Binding(description, values, sizes, tensors)


def is_ignored(description: Description, name: str) -> bool:
    """Whether a stored tensor is a buffer that carries no parameter."""
    return _INDEX.sub("*", name) in description.ignored


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


def check_shape(binding: Binding, shape: Mapping[str, int]) -> None:
    """Check that a shape can be expressed.

    Raises:
        ShapeError: It cannot; the message names the nearest that can.
    """
    reason = binding.refusal(shape)
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
