"""Editing config.json as JSON: only the planned keys change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ShapeError, SourceError
from .binding import Binding
from .composite import PART_KEYS, text_config, text_values, with_text_values
from .expressions import axis_length
from .layer_kinds import check_layer_kinds, dense_layer_changes
from .layer_patterns import period_changes
from .model_class import expected_tensors, parse_config
from .shared_kv import check_required, check_sources, kv_sources


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
        ShapeError: The config class refuses the new values, no config keys can say what the layers are, or a layer
            that others need is removed.
    """
    check_required(binding.required_layers, layers)
    before = text_values(raw)
    edited = dict(before)
    changed = binding.config_changes(shape)
    for key, value in changed.items():
        edited.update(dict.fromkeys(_spellings(config, before, key), value))
    change = binding.class_change(shape)
    if change is not None:
        # Only the names change: both classes have the same modules and read the same keys.
        edited.update({"model_type": change.model_type, **change.writes})
    new_index = {old: new for new, old in enumerate(layers)}
    lists = {}
    for key, first in binding.description.layer_indices.items():
        renumbered = {old + first: new + first for old, new in new_index.items()}
        _renumber(edited, key, renumbered)
        values = getattr(config, key, None)
        if isinstance(values, list):
            lists[key] = [renumbered[old] for old in values if old in renumbered]
    dense = dense_layer_changes(config, layers)
    edited.update(dense)
    edited.update(period_changes(binding, layers))
    lists = {key: values for key, values in lists.items() if key not in dense}
    for key in binding.description.per_layer:
        values, stated = getattr(config, key, None), before.get(key)
        if isinstance(values, list) and key not in changed:  # a changed number holds for every layer
            lists[key] = [values[layer] for layer in layers]
        if key not in changed and isinstance(stated, (list, str)) and len(stated) == binding.sizes["layers"]:
            # In the file's own words, which older readers know: its class may have renamed the kinds of layers.
            retained = [stated[layer] for layer in layers]
            edited[key] = "".join(retained) if isinstance(stated, str) else retained
        elif stated is not None and key in lists:
            edited[key] = lists[key]
    if isinstance(before.get("per_layer_config"), dict):
        own = {int(layer): values for layer, values in before["per_layer_config"].items()}
        edited["per_layer_config"] = {str(new_index[layer]): own[layer] for layer in layers if layer in own}
    shared = binding.description.shared_kv
    if binding.kv_sources and shared is not None:
        edited[shared.count] = sum(layer in binding.kv_sources for layer in layers)
    for key, name in binding.description.layer_runs.items():
        edited[key] = [[[getattr(config, name)[layer] for layer in layers], 1]]
    whole = without_code(raw)
    try:
        derived = text_config(parse_config(with_text_values(whole, _changed(before, edited))))
        for key, values in lists.items():
            if list(getattr(derived, key)) != values:
                edited[key] = values
        whole = with_text_values(whole, _changed(before, edited))
        parsed = parse_config(whole)
    except SourceError as error:
        raise ShapeError(f"this shape cannot be written: {error}") from None
    result = text_config(parsed)
    for key, values in lists.items():
        found = list(getattr(result, key))
        if found != values:
            layer = next(new for new, pair in enumerate(zip(found, values, strict=True)) if pair[0] != pair[1])
            raise ShapeError(
                f"num_hidden_layers={len(layers)} cannot be written for {binding.description.model_type} with layer "
                f"{layers[layer]} in place {layer}: its config class makes {key} {found[layer]} there, and the layer "
                f"is {values[layer]}"
            )
    if binding.kv_sources and shared is not None:
        after = kv_sources(edited[shared.count], getattr(result, shared.kinds))
        check_sources(binding.kv_sources, after, layers)
    check_layer_kinds(binding, parsed, layers)
    return whole


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that are new or have new values."""
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def _renumber(edited: dict[str, Any], key: str, new_index: Mapping[int, int]) -> None:
    """Renumber a list of layer indices, without those of removed layers; objects on the way to it are copied."""
    *outer, name = key.split(".")
    place = edited
    for part in outer:
        if not isinstance(place.get(part), dict):
            return
        place[part] = dict(place[part])
        place = place[part]
    if place.get(name):
        place[name] = [new_index[old] for old in place[name] if old in new_index]


def _spellings(config: Any, raw: Mapping[str, Any], key: str) -> list[str]:
    """Return the names under which a file has a key: its class may read several, and all have to say the same."""
    aliases: Mapping[str, str] = getattr(type(config), "attribute_map", {})
    own = aliases.get(key, key)
    names = [name for name in raw if aliases.get(name, name) == own]
    return names or [key]


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
        if bound.layer is None or (bound.layer in position and (bound.expert or 0) < sizes.get("experts", 1))
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
