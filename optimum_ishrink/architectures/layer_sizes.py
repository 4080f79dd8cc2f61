"""Sizes that differ from layer to layer, and sizes that are another one's: what an axis of one tensor counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .expressions import Axis, Section, evaluate

Names = Mapping[str, tuple[str, ...]]
"""Size name to the factors that stand for it."""


@dataclass(frozen=True)
class SizesOfKind:
    """What other sizes the layers of one kind have.

    Args:
        key: Config key of the list of kinds, one entry per layer.
        value: The kind.
        sizes: Size name to what these layers count instead, a product of sizes and numbers such as `2*ffn`. A name
            that is no size yet is one of these layers alone: its value is the size's own expression, over the config
            of the layer.
        when: An expression over config keys: only where it holds are the sizes others. Empty where they always are.
    """

    key: str
    value: str
    sizes: Mapping[str, str]
    when: str = ""


def sizes_by_layer(
    kinds: Sequence[SizesOfKind], expressions: Mapping[str, str], sizes: dict[str, int], config: Any, lookup: Lookup
) -> dict[int, Names]:
    """Return what each layer counts instead of a size, and add the sizes that only some layers have.

    Args:
        kinds: The kinds of layers with other sizes.
        expressions: Size name to its expression.
        sizes: Every size's value; sizes of some layers alone are added, unless they equal the model's.
        config: The model's config, with `per_layer_config` where its layers differ.
        lookup: Returns the value of a config key.

    Returns:
        Layer to the factors that stand for a size there.
    """
    found: dict[int, dict[str, tuple[str, ...]]] = {}
    for kind in kinds:
        values = lookup(kind.key)
        holds = not kind.when or evaluate(kind.when, lookup)
        layers = [layer for layer, value in enumerate(values or ()) if value == kind.value and holds]
        for size, text in kind.sizes.items():
            factors = tuple(factor.strip() for factor in text.split("*"))
            own = next((factor for factor in factors if not factor.isdigit() and factor not in expressions), None)
            if own is not None and layers:
                of_layer = config.per_layer_config[layers[0]]
                value = evaluate(expressions[size], partial(global_value, of_layer))
                if value == sizes[size]:
                    continue
                sizes[own] = value
            for layer in layers:
                found.setdefault(layer, {})[size] = factors
    return dict(found)


def renamed(axes: tuple[Axis, ...], names: Names) -> tuple[Axis, ...]:
    """Return axes with other factors in place of some.

    Args:
        axes: What each axis counts.
        names: The factors that stand for a size.
    """
    if not names:
        return axes
    return tuple(
        tuple(
            Section(tuple(other for name in section.factors for other in names.get(name, (name,)))) for section in axis
        )
        for axis in axes
    )


def global_value(config: Any, key: str) -> Any:
    """Return a config's own value of a key, which a config with other values for some layers refuses as ambiguous.

    Args:
        config: The config of a model or of a layer.
        key: The key.
    """
    stored = vars(config)
    return stored[key] if key in stored else getattr(config, key, None)


def number_of(value: Any) -> Any:
    """Return the number that all entries of a config's list are, or else the value itself.

    A list that gives every layer the same size is as good as one number.

    Args:
        value: A config key's value.
    """
    if isinstance(value, (list, tuple)) and value and all(isinstance(entry, (int, float)) for entry in value):
        return value[0] if all(entry == value[0] for entry in value) else value
    return value


Lookup = Callable[[str], Any]
