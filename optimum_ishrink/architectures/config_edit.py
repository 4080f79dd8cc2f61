"""Editing config.json as JSON: only the planned keys change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ShapeError, SourceError
from .binding import Binding
from .model_class import parse_config


def edit_config(
    raw: Mapping[str, Any], config: Any, binding: Binding, shape: Mapping[str, int], layers: Sequence[int]
) -> dict[str, Any]:
    """Return the contents of config.json for a new shape.

    Lists with one entry per layer are cut with the layers and lists of layer indices are renumbered. A list that the
    file leaves to the config class (`layer_types` from a sliding-window pattern, say) is written only if the class
    would derive a different one for the new depth.

    Args:
        raw: The source's config.json.
        config: The same, parsed by its class.
        binding: The model.
        shape: The new shape.
        layers: Indices of the retained layers.

    Raises:
        ShapeError: The config class refuses the new values.
    """
    edited = dict(raw)
    edited.update(binding.config_changes(shape))
    change = binding.class_change(shape)
    if change is not None:
        # Only the names change: both classes have the same modules and read the same keys.
        edited.update({"model_type": change.model_type, **change.writes})
    new_index = {old: new for new, old in enumerate(layers)}
    for key in binding.description.layer_indices:
        if raw.get(key):
            edited[key] = [new_index[old] for old in raw[key] if old in new_index]
    lists = {}
    for key in binding.description.per_layer:
        values = getattr(config, key, None)
        if isinstance(values, list):
            lists[key] = [values[layer] for layer in layers]
            if key in raw and raw[key] is not None:
                edited[key] = lists[key]
    try:
        derived = parse_config(edited)
        for key, values in lists.items():
            if list(getattr(derived, key)) != values:
                edited[key] = values
        parse_config(edited)
    except SourceError as error:
        raise ShapeError(f"this shape cannot be written: {error}") from None
    return edited


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, with both values; None before means that the key was absent."""
    return {key: (before.get(key), value) for key, value in after.items() if before.get(key) != value}
