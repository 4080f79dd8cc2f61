"""A class at several sizes: which shapes it stores when one config key changes, and when all do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from ..architectures.description import name_pattern
from ..architectures.expressions import evaluate
from ..errors import SourceError
from .tiny_class import Built, build, random_model
from .tiny_values import Tiny, Values, make_tiny, variations


@dataclass(frozen=True)
class Observed:
    """A class at several sizes, which differ from the first in one config key or in many.

    Args:
        tiny: The class at its first size.
        values: Config values of each size.
        built: What the class stores at each size.
        flags: What it stores with one flag of the config the other way round, by the flag's key: patterns that no
            other observation has.
    """

    tiny: Tiny
    values: tuple[Values, ...]
    built: tuple[Built, ...]
    flags: Mapping[str, Observed]

    def sizes(self, expressions: Mapping[str, str]) -> list[dict[str, int]]:
        """Return the values of some sizes in each observation.

        Args:
            expressions: Name of a size to its expression over config keys.
        """
        return [{name: evaluate(text, values.get) for name, text in expressions.items()} for values in self.values]


def observe(tiny: Tiny, raw: Mapping[str, Any]) -> Observed:
    """Return a class with every size changed alone, then several together, then with its flags turned.

    Args:
        tiny: The class.
        raw: The contents of config.json.
    """
    observed = _at_sizes(tiny)
    patterns = {name_pattern(name) for name in observed.built[0].stored}
    new: dict[str, Tiny] = {}
    for key, value in tiny.values.items():
        if not isinstance(value, bool) or "cross_attention" in key:  # that belongs to an encoder
            continue
        with suppress(SourceError):
            turned = {**tiny.values, key: not value}
            built = build(turned, tiny.model_type)
            if {name_pattern(name) for name in built.stored} - patterns:
                new[key] = _that_computes(replace(tiny, values=turned, built=built), {**raw, key: not value})
    return Observed(tiny, observed.values, observed.built, {key: _at_sizes(other) for key, other in new.items()})


def _that_computes(tiny: Tiny, raw: Mapping[str, Any]) -> Tiny:
    """Return a tiny class, at other sizes where it cannot compute with these."""
    try:
        random_model(tiny.values, tiny.model_type)
    except SourceError:
        return make_tiny(raw)
    return tiny


def _at_sizes(tiny: Tiny) -> Observed:
    keys = [key for role, key in tiny.keys.items() if role != "layers"] + list(tiny.size_keys)
    values: list[Values] = [tiny.values]
    built = [tiny.built]
    together: dict[str, Any] = dict(tiny.values)
    for key in keys:
        for changed, other in islice(variations(tiny.values, tiny.model_type, key), 1):
            values.append(changed)
            built.append(other)
        for changed, _ in islice(variations(together, tiny.model_type, key), 1):
            together = changed
    return Observed(tiny, (*values, together), (*built, build(together, tiny.model_type)), {})


def lengths(observed: Observed, name: str, axis: int, *, memory: bool = False) -> tuple[list[int], list[int]]:
    """Return the lengths of one axis of a tensor, and the indices of the observations that have the tensor.

    Args:
        observed: The class at several sizes.
        name: Name of the tensor.
        axis: Index of the axis.
        memory: Whether the tensor is one of those that memory lays out otherwise.
    """
    tables = [built.memory if memory else built.stored for built in observed.built]
    places = [i for i, table in enumerate(tables) if name in table]
    return [tables[i][name][axis] for i in places], places
