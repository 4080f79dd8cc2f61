"""A description bound to one config: every tensor of the model accounted for.

Everything that plans, cuts, scores or verifies reads the architecture through a `Binding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from ..errors import ArchitectureError
from .description import DIMENSIONS, INDEX, ClassChange, Description, name_pattern
from .expressions import Axis, Section, axis_length, evaluate


@dataclass(frozen=True)
class BoundTensor:
    """One tensor of a model with its axes resolved.

    Args:
        name: Name in the checkpoint.
        axes: What each axis counts.
        layer: Index of its layer, or None outside the layers.
        expert: Index of its expert, or None if experts are not stored separately.
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
        return INDEX.sub(str(layer), self.name, count=1)


@dataclass(frozen=True)
class Binding:
    """A description tied to one config: every tensor of the model accounted for.

    Args:
        description: The architecture.
        values: The config keys that the description reads, and their values.
        sizes: Every size's value, such as `{"layers": 30, "kv": 3, "heads": 9, "ffn": 1536, ...}`.
        tensors: Every parameter of the model, by name.
        config: The model's `PreTrainedConfig`, for what is not a size.
        first_layers: How many of the first layers have to stay.
        first_reason: Why they have to.
    """

    description: Description
    values: Mapping[str, Any]
    sizes: Mapping[str, int]
    tensors: Mapping[str, BoundTensor]
    config: Any = field(default=None, repr=False, compare=False)
    first_layers: int = 0
    first_reason: str = ""

    @property
    def shape(self) -> dict[str, int]:
        """The model's size in each dimension, by config key."""
        return {key: self.sizes[size] for key, size in DIMENSIONS.items() if size in self.sizes}

    def resized(self, shape: Mapping[str, int]) -> dict[str, int]:
        """Return all sizes after a change of shape. Query heads that are not named change with their KV groups.

        Args:
            shape: New values by config key; other dimensions do not change.
        """
        sizes = dict(self.sizes)
        sizes.update({DIMENSIONS[key]: value for key, value in shape.items()})
        if "num_attention_heads" not in shape:
            sizes["heads"] = sizes["kv"] * (self.sizes["heads"] // self.sizes["kv"])
        return sizes

    def config_changes(self, shape: Mapping[str, int]) -> dict[str, int]:
        """Return the config keys that change with a new shape, and their values."""
        sizes = self.resized(shape)
        changes: dict[str, int] = {}
        for key, dimension in self.description.dimensions.items():
            if key in shape and shape[key] != self.shape.get(key):
                changes.update({name: evaluate(value, sizes.get) for name, value in dimension.writes.items()})
        return changes

    def refusal(self, shape: Mapping[str, int], *, allow_class_change: bool = False) -> str | None:
        """Return why a shape cannot be expressed, or None if it can.

        Args:
            shape: New values by config key.
            allow_class_change: Whether it may be written as another class that computes the same function.
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
            return f"num_attention_heads={sizes['heads']} is not a multiple of num_key_value_heads={sizes['kv']}"
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
        """Whether another class computes the same function for this config."""
        change = self.description.class_change
        return change is not None and not any(self.values.get(key) for key in change.unless)

    def class_change(self, shape: Mapping[str, int]) -> ClassChange | None:
        """Return the other class that a shape has to be written as, or None if this one accepts it."""
        return self.description.class_change if self._broken_rule(shape) is not None else None

    def inexact(self, shape: Mapping[str, int]) -> list[str]:
        """Return the reasons why a cut to this shape does not equal the original with the removed units at zero."""
        dimensions = self.description.dimensions
        changed = [key for key, value in shape.items() if value != self.shape.get(key)]
        return sorted({dimensions[key].inexact or "" for key in changed} - {""})

    def num_parameters(self, shape: Mapping[str, int] | None = None) -> int:
        """Return the number of parameters at a shape, summed over the tensors.

        Args:
            shape: New values by config key; None for the unchanged model. With fewer layers, the first ones count.
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
        """The tensors by their names in a loaded model, where some are laid out differently than on disk."""
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


def bind(
    description: Description,
    config: Any,
    shapes: Mapping[str, Sequence[int]],
    carried: frozenset[str] = frozenset(),
) -> Binding:
    """Bind a description to a model.

    Args:
        description: The architecture.
        config: The model's `PreTrainedConfig`.
        shapes: Name and shape of every parameter that the config's model class stores (see `expected_tensors`).
        carried: Names of tensors outside the described part of the model; their axes count nothing that can change.

    Returns:
        The binding, with every parameter accounted for.

    Raises:
        ArchitectureError: A parameter has no entry, or its shape is not the described one; the message lists them all.
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
        evaluate(rule.require, lookup)  # registers the keys of the rules, which later checks of shapes need
    for dimension in description.dimensions.values():
        for key in dimension.writes:
            lookup(key)
    for key in description.class_change.unless if description.class_change else ():
        lookup(key)
    if "kv" in sizes and sizes["heads"] % sizes["kv"]:
        raise ArchitectureError(f"{sizes['heads']} query heads are not a multiple of {sizes['kv']} key-value heads")

    tensors: dict[str, BoundTensor] = {}
    unexpected: list[str] = []
    for name, shape in shapes.items():
        if name in carried:
            tensors[name] = BoundTensor(name, tuple((Section((str(length),)),) for length in shape), None)
            continue
        axes = description.tensors.get(name_pattern(name))
        if axes is None:
            unexpected.append(f"{name} {list(shape)}")
            continue
        try:
            expected = [axis_length(axis, sizes) for axis in axes]
        except (KeyError, TypeError):
            raise ArchitectureError(
                f"the axes of {name} name a size that {description.model_type} does not define"
            ) from None
        if list(shape) != expected:
            unexpected.append(f"{name} {list(shape)} (described as {expected})")
            continue
        indices = [int(index) for index in INDEX.findall(name)]
        layer, expert = (*indices, None, None)[:2]
        tensors[name] = BoundTensor(name, axes, layer, expert, name_pattern(name) in description.transposed)
    if unexpected:
        raise ArchitectureError(
            f"the {description.model_type} description does not account for {len(unexpected)} of the model's "
            f"parameters: {'; '.join(sorted(unexpected))}"
        )
    return Binding(description, values, sizes, tensors, config)
