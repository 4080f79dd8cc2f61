"""Layers that read the keys and values of an earlier one, and layers that a cut has to retain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ShapeError


@dataclass(frozen=True)
class SharedKV:
    """How a config says which layers read the keys and values of another.

    The last layers have none of their own. Each reads those of the last layer before all of these that is of its kind.

    Args:
        count: Config key of the number of layers at the end that do.
        kinds: Config key of the list of kinds, one entry per layer.
    """

    count: str
    kinds: str


def kv_sources(count: int, kinds: Sequence[Any]) -> dict[int, int]:
    """Return, for each layer without keys and values of its own, the layer whose it reads.

    Args:
        count: Layers at the end that have none.
        kinds: The kind of each layer.

    Raises:
        ValueError: No earlier layer is of the kind of one of these.
    """
    first = len(kinds) - count
    sources = {}
    for layer in range(first, len(kinds)):
        same = [before for before in range(first) if kinds[before] == kinds[layer]]
        if not same:
            raise ValueError(f"layer {layer} reads keys and values of a {kinds[layer]} layer, and no earlier one is")
        sources[layer] = same[-1]
    return sources


def check_sources(before: Mapping[int, int], after: Mapping[int, int], layers: Sequence[int]) -> None:
    """Check that every retained layer reads the keys and values that it read.

    Args:
        before: Layer of the model to the layer whose keys and values it reads.
        after: The same for the result, by its own layers.
        layers: Indices of the retained layers.

    Raises:
        ShapeError: One would read those of another layer; the message names both.
    """
    position = {layer: new for new, layer in enumerate(layers)}
    for new, layer in enumerate(layers):
        source = before.get(layer)
        if (None if source is None else position.get(source)) != after.get(new) or (
            source is not None and source not in position
        ):
            raise ShapeError(
                f"layer {layer} reads the keys and values of layer {source}, which has to be retained with it; retain "
                "it, or remove both"
            )


def check_required(required: Sequence[int], layers: Sequence[int]) -> None:
    """Check that a cut retains the layers that it has to.

    Args:
        required: Indices of the layers that have to be retained.
        layers: Indices of the retained layers.

    Raises:
        ShapeError: One is removed; the message names it.
    """
    missing = [layer for layer in required if layer not in set(layers)]
    if missing:
        which = f"layer{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        raise ShapeError(
            f"num_hidden_layers={len(layers)} would remove {which}, which other layers "
            f"or the model class need; keep num_hidden_layers at {len(required)} or more, and lower keep_first_layers "
            "or keep_last_layers if they protect too many others"
        )
