"""Editing config.json as JSON: only the planned keys change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ShapeError, SourceError
from .binding import Binding
from .composite import PART_KEYS, text_config, text_values, with_text_values
from .expressions import axis_length
from .layer_kinds import check_layer_kinds, dense_layer_changes
from .model_class import expected_tensors, parse_config


def edit_config(
    raw: Mapping[str, Any], config: Any, binding: Binding, shape: Mapping[str, int], layers: Sequence[int]
) -> dict[str, Any]:
    """Return the contents of config.json for a new shape.

    Lists with one entry per layer are cut with the layers and lists of layer indices are renumbered. A list that the
    file leaves to the config class (`layer_types` from a sliding-window pattern, say) is written only if the class
    would derive a different one for the new depth. `auto_map` is left out: the code that it names is neither run nor
    copied, and the class of transformers reads the result.

    Args:
        raw: The source's config.json.
        config: The same, parsed by its class; of a model of several parts, the config of its decoder.
        binding: The model.
        shape: The new shape.
        layers: Indices of the retained layers.

    Raises:
        ShapeError: The config class refuses the new values, or no config keys can say which layers have experts.
    """
    whole, raw = without_code(raw), text_values(raw)
    edited = without_code(raw)
    edited.update(binding.config_changes(shape))
    change = binding.class_change(shape)
    if change is not None:
        # Only the names change: both classes have the same modules and read the same keys.
        edited.update({"model_type": change.model_type, **change.writes})
    new_index = {old: new for new, old in enumerate(layers)}
    for key in binding.description.layer_indices:
        if raw.get(key):
            edited[key] = [new_index[old] for old in raw[key] if old in new_index]
    edited.update(dense_layer_changes(config, layers))
    lists = {}
    for key in binding.description.per_layer:
        values = getattr(config, key, None)
        if isinstance(values, list):
            lists[key] = [values[layer] for layer in layers]
            if key in raw and raw[key] is not None:
                edited[key] = lists[key]
    try:
        derived = text_config(parse_config(with_text_values(whole, edited)))
        for key, values in lists.items():
            if list(getattr(derived, key)) != values:
                edited[key] = values
        written = with_text_values(whole, edited)
        result = parse_config(written)
    except SourceError as error:
        raise ShapeError(f"this shape cannot be written: {error}") from None
    check_layer_kinds(binding, result, layers)
    return written


def check_edited(edited: Mapping[str, Any], binding: Binding, shape: Mapping[str, int], layers: Sequence[int]) -> None:
    """Check that a new config's model class expects what a cut will write, so that this is known before the cut.

    Args:
        edited: Contents of the new config.json.
        binding: The source's binding.
        shape: The new shape.
        layers: Indices of the retained layers.

    Raises:
        ShapeError: It expects another tensor, or one of another shape.
    """
    sizes, position = binding.resized(shape), {layer: new for new, layer in enumerate(layers)}
    wanted = {
        bound.name if bound.layer is None else bound.in_layer(position[bound.layer]): tuple(
            axis_length(axis, sizes) for axis in bound.axes
        )
        for bound in binding.tensors.values()
        if bound.layer is None or bound.layer in position
    }
    found = expected_tensors(parse_config(edited))
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ShapeError(
                f"this shape cannot be written for {binding.description.model_type}: its class would expect {name} as "
                f"{_lengths(found.get(name))}, and the cut has {_lengths(wanted.get(name))}; the description's "
                "'writes' do not say what the class derives: correct it, or shrink another dimension"
            )


def _lengths(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def without_code(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of a JSON file without `auto_map`, which names Python files that are never run or copied."""
    return {key: value for key, value in raw.items() if key != "auto_map"}


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, with both values; None before means that the key was absent.

    A key inside the config of a part is written after the part's, with a dot between them.
    """
    changes: dict[str, tuple[Any, Any]] = {}
    for key, value in after.items():
        old = before.get(key)
        if key in PART_KEYS and isinstance(old, Mapping) and isinstance(value, Mapping):
            changes.update({f"{key}.{name}": pair for name, pair in changed_keys(old, value).items()})
        elif old != value:
            changes[key] = (old, value)
    return changes


def with_changes(raw: Mapping[str, Any], changes: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Return the contents of config.json with what `changed_keys` found.

    Args:
        raw: The contents of the config.json.
        changes: The changed keys, with both values.
    """
    edited = dict(raw)
    for key, (_, value) in changes.items():
        part, _, name = key.partition(".")
        if name and isinstance(edited.get(part), Mapping):
            edited[part] = {**edited[part], name: value}
        else:
            edited[key] = value
    return edited
