"""A description bound to one config: every tensor of the model accounted for.

Everything that plans, cuts, scores or verifies reads the architecture through a `Binding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

from ..errors import ArchitectureError
from .description import DIMENSIONS, EXPERTS, INDEX, TOP_K, ClassChange, Description, entry_of, loaded_name
from .expressions import Axis, Section, axis_length, evaluate
from .layer_sizes import Names, global_value, number_of, renamed, sizes_by_layer
from .shared_kv import kv_sources


@dataclass(frozen=True)
class BoundTensor:
    """One tensor of a model with its axes resolved.

    Args:
        name: Name in the checkpoint.
        axes: What each axis counts.
        layer: Index of its layer, or None outside the layers.
        expert: Index of its expert, or None if experts are not stored separately.
        transposed: Whether a weight stores (in, out).
        loaded_name: Name of the parameter in a loaded model, where it is not the checkpoint's.
    """

    name: str
    axes: tuple[Axis, ...]
    layer: int | None
    expert: int | None = None
    transposed: bool = False
    loaded_name: str | None = None

    @property
    def parameter(self) -> str:
        """Name of the parameter in a loaded model."""
        return self.loaded_name or self.name

    @property
    def module(self) -> str:
        """Name of the module of a weight in a loaded model."""
        return self.parameter.removesuffix(".weight")

    def counts(self, size: str) -> bool:
        """Whether any axis counts `size`."""
        return any(size in section.factors for axis in self.axes for section in axis)

    def in_layer(self, layer: int, expert: int | None = None) -> str:
        """Return the tensor's name when its layer has the index `layer`, and its expert, if any, the index `expert`.

        Args:
            layer: The layer's index.
            expert: The expert's index; None leaves it as it is.
        """
        if expert is None or self.expert is None:
            return INDEX.sub(str(layer), self.name, count=1)
        indices = iter((layer, expert))
        return INDEX.sub(lambda _: str(next(indices)), self.name, count=2)


_Kind = tuple[tuple[tuple[Axis, ...], bool], ...]
"""The axes of a layer's tensors, and whether there is one of each for every expert."""


@dataclass(frozen=True)
class Binding:
    """A description tied to one config: every tensor of the model accounted for.

    Args:
        description: The architecture.
        values: The config keys that the description reads, and their values.
        sizes: Every size's value, such as `{"layers": 30, "kv": 3, "heads": 9, "ffn": 1536, ...}`.
        tensors: Every parameter of the model, by name.
        config: The model's `PreTrainedConfig`, for what is not a size.
        kv_sources: Layer to the layer whose keys and values it reads, where it has none of its own.
        required_layers: Indices of the layers that a cut retains.
        by_layer: Layer to the factors that stand for a size there.
        joined: Why the layers cannot be run one by one; None where they can.
        first_layers: How many of the first layers have to stay.
        first_reason: Why they have to.
    """

    description: Description
    values: Mapping[str, Any]
    sizes: Mapping[str, int]
    tensors: Mapping[str, BoundTensor]
    config: Any = field(default=None, repr=False, compare=False)
    kv_sources: Mapping[int, int] = field(default_factory=dict)
    required_layers: tuple[int, ...] = ()
    by_layer: Mapping[int, Names] = field(default_factory=dict, repr=False)
    joined: str | None = None
    first_layers: int = 0
    first_reason: str = ""

    @property
    def shape(self) -> dict[str, int]:
        """The model's size in each dimension, by config key."""
        return {key: self.sizes[size] for key, size in DIMENSIONS.items() if self.sizes.get(size)}

    @property
    def mlps(self) -> int:
        """MLPs of a layer whose neurons are counted through: its experts and after them the shared ones; or just one.

        Shared experts count where they are as wide as the routed ones, because one config key says both.
        """
        return (self.sizes.get("experts") or 1) + (self.sizes.get("shared") or 0)

    @property
    def expert_groups(self) -> int:
        """Consecutive groups of experts that the router chooses among first, all of one size; 1 for most models."""
        return self.sizes.get("expert_groups") or 1

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

    def config_changes(self, shape: Mapping[str, int]) -> dict[str, Any]:
        """Return the config keys that change with a new shape, and their values."""
        sizes = self.resized(shape)
        changes: dict[str, Any] = {}
        for key, dimension in self.description.dimensions.items():
            if key in shape and shape[key] != self.shape.get(key):
                changes.update(
                    {name: evaluate(value, {**self.values, **sizes}.get) for name, value in dimension.writes.items()}
                )
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
                # It may follow another one: query heads that are removed with their KV group alone.
                others = {name: other for name, other in shape.items() if name != key}
                if value != current and value != self.resized(others).get(DIMENSIONS[key]):
                    reason = self.description.dimensions[key].fixed or "the model has no such dimension"
                    return f"{key} cannot change for {self.description.model_type}: {reason}"
            elif not 1 <= value <= current:
                return f"{key}={value} is not between 1 and the model's {current}"
        sizes = self.resized(shape)
        if sizes["heads"] % sizes["kv"]:
            return f"num_attention_heads={sizes['heads']} is not a multiple of num_key_value_heads={sizes['kv']}"
        broken = self._routing_refusal(sizes) if EXPERTS in self.shape else None
        if broken is not None:
            return broken
        broken = self._broken_rule(shape)
        change = self.description.class_change
        if broken is None or change is None or not self.can_change_class:
            return broken
        return None if allow_class_change else f"{broken}; allow_class_change would write it as {change.model_type}"

    def _routing_refusal(self, sizes: Mapping[str, int]) -> str | None:
        experts, top_k, groups = sizes["experts"], sizes.get("top_k") or 1, self.expert_groups
        if experts < top_k:
            lower = f"; or lower {TOP_K}" if self.description.dimensions[TOP_K].fixed is None else ""
            return (
                f"{EXPERTS}={experts} is fewer than the {top_k} experts that every token is routed to: the least is "
                f"{-(-top_k // groups) * groups}{lower}"
            )
        if experts % groups:
            return f"{EXPERTS}={experts} is not a multiple of the {groups} groups that the router chooses among first"
        return None

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
        counts: dict[_Kind, int] = {}
        for kind in set(self._layer_kinds):
            counts[kind] = sum(
                prod(axis_length(axis, sizes) for axis in axes) * (sizes["experts"] if of_expert else 1)
                for axes, of_expert in kind
            )
        return [counts[kind] for kind in self._layer_kinds]

    @cached_property
    def _layer_kinds(self) -> list[_Kind]:
        kinds: list[list[tuple[tuple[Axis, ...], bool]]] = [[] for _ in range(self.sizes["layers"])]
        for tensor in self.tensors.values():
            if tensor.layer is not None and not tensor.expert:  # the first expert stands for all
                kinds[tensor.layer].append((tensor.axes, tensor.expert is not None))
        return [tuple(kind) for kind in kinds]

    @cached_property
    def in_memory(self) -> Mapping[str, BoundTensor]:
        """The tensors by their names in a loaded model, where some are laid out differently than on disk."""
        bound = {tensor.parameter: tensor for tensor in self.tensors.values()}
        for pattern, axes in self.description.memory.items():
            for layer in range(self.sizes["layers"]):
                name = pattern.replace("*", str(layer), 1)
                bound[name] = BoundTensor(name, renamed(axes, self.by_layer.get(layer, {})), layer)
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
        values[key] = number_of(global_value(config, key))
        return values[key]

    description = description.for_config(lookup)
    try:
        sizes = {name: evaluate(expression, lookup) for name, expression in description.sizes.items()}
    except (TypeError, ZeroDivisionError):
        raise ArchitectureError(
            f"the config lacks a size that {description.model_type} needs: {', '.join(description.sizes.values())}"
        ) from None
    if any(isinstance(value, (list, tuple)) for value in sizes.values()):
        name, value = next((name, value) for name, value in sizes.items() if isinstance(value, (list, tuple)))
        raise ArchitectureError(
            f"{description.sizes[name]} differs from layer to layer in this model ({value}), and a cut gives every "
            "layer the same number"
        )
    by_layer = sizes_by_layer(description.by_layer, description.sizes, sizes, config, lookup)
    followed = {size: (other,) for size, other in description.follows.items() if sizes[size] == sizes[other]}

    def size_or_key(name: str) -> Any:
        return sizes[name] if name in sizes else lookup(name)

    for rule in description.rules:
        evaluate(rule.require, lookup)  # registers the keys of the rules, which later checks of shapes need
    for dimension in description.dimensions.values():
        for key, expression in dimension.writes.items():
            lookup(key)
            # A new value may depend on the old ones: a factor that the class divides by the depth, say.
            evaluate(expression, size_or_key)
    for key in description.class_change.unless if description.class_change else ():
        lookup(key)
    dimensions = {
        key: replace(dimension, fixed=None, inexact=None)
        if dimension.when and not evaluate(dimension.when, size_or_key)
        else dimension
        for key, dimension in description.dimensions.items()
    }
    if "kv" in sizes and sizes["heads"] % sizes["kv"]:
        raise ArchitectureError(f"{sizes['heads']} query heads are not a multiple of {sizes['kv']} key-value heads")

    tensors: dict[str, BoundTensor] = {}
    unexpected: list[str] = []
    for name, shape in shapes.items():
        if name in carried:
            tensors[name] = BoundTensor(name, tuple((Section((str(length),)),) for length in shape), None)
            continue
        entry = entry_of(description, name)
        axes = description.tensors.get(entry)
        if axes is None:
            unexpected.append(f"{name} {list(shape)}")
            continue
        indices = [int(index) for index in INDEX.findall(name)][: entry.count("*")]
        layer, expert = (*indices, None, None)[:2]
        try:
            axes = renamed(renamed(axes, followed), by_layer.get(layer, {}) if layer is not None else {})
            expected = [axis_length(axis, sizes) for axis in axes]
        except (KeyError, TypeError):
            raise ArchitectureError(
                f"the axes of {name} name a size that {description.model_type} does not define"
            ) from None
        if list(shape) != expected:
            unexpected.append(f"{name} {list(shape)} (described as {expected})")
            continue
        expert = expert if sizes.get("experts") else None
        tensors[name] = BoundTensor(
            name, axes, layer, expert, entry in description.transposed, loaded_name(description, entry, indices)
        )
    if unexpected:
        raise ArchitectureError(
            f"the {description.model_type} description does not account for {len(unexpected)} of the model's "
            f"parameters: {'; '.join(sorted(unexpected))}"
        )
    sources = {}
    if description.shared_kv is not None:
        count = lookup(description.shared_kv.count) or 0
        sources = kv_sources(count, lookup(description.shared_kv.kinds)) if count else {}
    joined = description.joined_layers
    if joined is not None and joined.when and not evaluate(joined.when, lookup):
        joined = None
    required = {evaluate(text, sizes.get) for text in description.required_layers} | {*sources.values()}
    return Binding(
        replace(description, dimensions=dimensions),
        values,
        sizes,
        tensors,
        config,
        kv_sources=sources,
        required_layers=tuple(sorted(required)),
        by_layer=by_layer,
        joined=None if joined is None else joined.reason,
    )
