"""Config values that make a class tiny, with sizes that differ from one another wherever the class lets them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING

from ..errors import ArchitectureError, SourceError
from .tiny_class import Built, build, config_values, make_config, random_model

Values = Mapping[str, Any]
"""Config values by key."""

ROLES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "vocab": ("vocab_size",),
    "heads": ("num_attention_heads",),
    "kv": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "attention_head_dim", "kv_channels"),
}
"""Size that every description has to the config keys that may hold it. Classes map their own spelling of a standard
key to it (`attribute_map`), so a few names are enough; what is neither here nor mapped is found by its effect."""

_SHAPES: tuple[Mapping[str, int], ...] = (
    {"hidden": 64, "heads": 8, "kv": 4, "head_dim": 16},  # hidden is not heads * head_dim
    {"hidden": 128, "heads": 8, "kv": 4},
    {"hidden": 128, "heads": 8, "kv": 8},
    {
        "hidden": 128,
        "heads": 8,
        "kv": 8,
        "alike": 1,
    },  # other sizes keep their ratios, and equal head_dim where they did
)
"""Tried in this order. heads / 2 and kv / 2 have to divide, and a quarter of head_dim has to be even for rotary
embeddings of a part."""

_LAYERS, _MOST_LAYERS, _VOCAB, _POSITIONS = 4, 12, 160, 512
_SMALL = 8
"""Counts up to this stay as they are."""

_WIDTHS = (24, 40, 56, 72, 88, 104, 120, 136, 152, 168)
"""Widths for other sizes: multiples of 8, which products of grouped experts want, and distinct from the others."""


@dataclass(frozen=True)
class Tiny:
    """A class made tiny.

    Args:
        model_type: The architecture.
        values: The config values.
        keys: Size that every description has to its config key; sizes without a key are missing.
        size_keys: Every other config key that the shape of a tensor depends on.
        optional: Those of the keys that the config leaves unset, so that the class derives the value.
        built: What the class stores at this size.
        notes: What was left out to make it tiny, as sentences.
    """

    model_type: str
    values: Values
    keys: Mapping[str, str]
    size_keys: tuple[str, ...]
    optional: tuple[str, ...]
    built: Built
    notes: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """Number of layers."""
        return int(self.values[self.keys["layers"]])


def make_tiny(raw: Mapping[str, Any]) -> Tiny:
    """Return the class of a config, made tiny. Flags and patterns of layers stay as the config has them.

    Args:
        raw: The contents of config.json.

    Raises:
        SourceError: The class refuses the config, or every size that was tried; the message names the key.
        ArchitectureError: No key of the config holds the number of layers.
    """
    model_type = raw["model_type"]
    values = config_values(raw)
    keys = _role_keys(values, model_type)
    for role in ("layers", "hidden", "vocab", "heads"):
        if role not in keys:
            raise ArchitectureError(
                f"the {model_type} config has no {ROLES[role][0]}, nor a key of its own that it maps to it, which a "
                "draft needs; write this description by hand"
            )
    values, notes = _without_extras(values, keys)
    errors: list[SourceError] = []
    for shape in _SHAPES:
        try:
            return _tiny(values, model_type, keys, shape, notes)
        except SourceError as error:
            errors.append(error)
    key = _breaking_key(values, model_type, keys)
    raise SourceError(f"no tiny {model_type} can be made, since {key} cannot be small: {errors[-1]}")


def _role_keys(values: Values, model_type: str) -> dict[str, str]:
    mapped = CONFIG_MAPPING[model_type].attribute_map
    found: dict[str, str] = {}
    for role, names in ROLES.items():
        spelled = [each for name in names for each in (mapped.get(name, name), name)]
        present = [name for name in spelled if name in values and not isinstance(values[name], (list, dict))]
        if present:
            found[role] = present[0]
    return found


def _without_extras(values: Values, keys: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the values with what depends on the original's sizes but not on its structure made small."""
    small, notes = deepcopy(dict(values)), []
    for key, value in values.items():
        if isinstance(value, dict):
            plain = _plain_rope(value)
            if plain != value:
                small[key] = plain
                notes.append(f"{key} was reduced to the default kind, so scaled positions are no part of the proof")
        elif not _is_count(value):
            continue
        elif key.endswith("_token_id"):
            small[key] = min(value, {"pad_token_id": 0, "bos_token_id": 1}.get(key, 2))
        elif "window" in key and key not in keys.values():
            small[key] = min(value, 3) if "layers" not in key else value
        elif key in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"):
            small[key] = min(value, _POSITIONS)
        elif "expert" in key or re.search(r"top_?k|_k$|n_group", key):
            small[key] = _count_of_experts(key, value)
    return small, tuple(notes)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain_rope(value: dict[str, Any]) -> dict[str, Any]:
    if any(isinstance(entry, dict) for entry in value.values()):
        return {key: _plain_rope(entry) if isinstance(entry, dict) else entry for key, entry in value.items()}
    kind = value.get("rope_type", value.get("type"))
    if kind is None or kind in ("default", "proportional"):
        return value
    # Lists hold a factor for each channel of a head of the original's width.
    plain = {key: entry for key, entry in value.items() if not isinstance(entry, list) and key != "type"}
    return {**plain, "rope_type": "default"}


def _count_of_experts(key: str, value: int) -> int:
    """Return a small count where a key counts experts, two of which see a token; other keys keep their value."""
    if re.search(r"size|dim|width|freq|step|layer|period|offset|interval|intermediate|capacity", key):
        return value
    if re.search(r"group", key):
        return min(value, 1)
    if re.search(r"per_tok|top_?k|_k$|shared|used", key):
        return min(value, 2)
    return min(value, 4) if value else value


def _tiny(
    values: Values, model_type: str, keys: Mapping[str, str], shape: Mapping[str, int], notes: Sequence[str]
) -> Tiny:
    small, keys = dict(values), dict(keys)
    of_class = getattr(CONFIG_MAPPING[model_type], ROLES["head_dim"][0], None)
    if "head_dim" in shape and "head_dim" not in keys and not isinstance(of_class, property):
        keys["head_dim"] = ROLES["head_dim"][0]  # a key that a class may read although its config does not list it
    for role, value in {**shape, "vocab": _VOCAB}.items():
        if role in keys and not (role == "kv" and values[keys[role]] == 1):
            small[keys[role]] = value
    if "head_dim" not in shape and "head_dim" in keys:
        small[keys["head_dim"]] = None if values.get(keys["head_dim"]) is None else 16
    small = _that_is_accepted(small, values, model_type, keys)
    small = _shallow(small, model_type, keys)
    optional = [key for key in keys.values() if values.get(key) is None]
    if "head_dim" in shape and not ("head_dim" in keys and _moves(small, model_type, keys["head_dim"])):
        raise SourceError("the width of a head follows from the other sizes")
    alike = values.get(keys.get("head_dim", "")) if "alike" in shape else None
    small, size_keys, unset = _small_widths(small, model_type, keys, alike)
    small = _that_computes(small, model_type, {*keys.values(), *size_keys})
    if small.get(keys.get("head_dim", "")) is None:
        keys.pop("head_dim", None)
    if small.get(keys.get("kv", "")) is None or not _moves(small, model_type, keys["kv"]):
        keys.pop("kv", None)  # a key that a config may list although its class does not read it
    return Tiny(model_type, small, keys, size_keys, (*optional, *unset), build(small, model_type), tuple(notes))


def _that_is_accepted(
    small: dict[str, Any], values: Values, model_type: str, keys: Mapping[str, str]
) -> dict[str, Any]:
    """Return values that the config class accepts: where it wants a product to be the width, one factor follows it.

    Such as the heads of a state-space layer, which together are a multiple of the hidden size.
    """
    try:
        make_config(small, model_type)
        return small
    except SourceError:
        ratio = small[keys["hidden"]] / values[keys["hidden"]]
        for key, value in values.items():
            if not _is_count(value) or key in keys.values() or not (value * ratio).is_integer() or not value * ratio:
                continue
            with suppress(SourceError):
                follows = {**small, key: int(value * ratio)}
                make_config(follows, model_type)
                return follows
        return small  # which fails where it is built, with the reason


def _that_computes(values: Values, model_type: str, sizes: set[str]) -> dict[str, Any]:
    """Return values with which the class computes: where it does not, a number that no shape shows may be too large.

    Such as the number of a head's channels that rotate.
    """
    try:
        random_model(values, model_type)
        return dict(values)
    except SourceError as error:
        for key, value in values.items():
            if _is_count(value) and value > _SMALL and key not in sizes:
                with suppress(SourceError):
                    random_model({**values, key: _SMALL}, model_type)
                    return {**values, key: _SMALL}
        raise error


def _moves(values: Values, model_type: str, key: str) -> bool:
    """Whether shapes depend on a key."""
    return next(iter(variations(values, model_type, key)), None) is not None


def variations(values: Values, model_type: str, key: str) -> Iterator[tuple[dict[str, Any], Built]]:
    """Yield changes of one key that the class accepts and that change the shape of a tensor.

    Args:
        values: Config values.
        model_type: The architecture.
        key: The key; unset or a whole number.
    """
    value, before = values.get(key), build(values, model_type).stored
    others = (24, 40) if value is None else (2 * value, value // 2, value + 8, value + 1, value - 1)
    for other in others:
        if other < 1 or other == value:
            continue
        changed = {**values, key: other}
        with suppress(SourceError):
            built = build(changed, model_type)
            if built.stored != before:
                yield changed, built


def _shallow(values: Values, model_type: str, keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the values with as few layers as hold every kind that the model has, and lists cut to them."""
    key = keys["layers"]
    depth = int(values[key])
    if depth <= _LAYERS:
        return dict(values)
    kinds = _kinds(build(values, model_type), depth, values)
    count = max(_LAYERS, 1 + max(kinds.index(kind) for kind in set(kinds)))
    count = min(count, depth, _MOST_LAYERS)
    return with_layers(values, key, range(count))


def holds_indices(key: str, value: Any) -> bool:
    """Whether a config's list holds indices of layers: whole numbers that rise, and a key that says so.

    Args:
        key: The config key.
        value: Its value.
    """
    if not isinstance(value, list) or "layers" not in key or not all(_is_count(entry) for entry in value):
        return False
    return list(value) == sorted(set(value))


def with_layers(values: Values, key: str, layers: Sequence[int]) -> dict[str, Any]:
    """Return the values for some of the layers: lists with one entry per layer are cut.

    Args:
        values: Config values.
        key: The key that holds the number of layers.
        layers: Indices of the layers that stay.

    Returns:
        The values; lists of indices of layers, and objects with an entry for some layers, are renumbered.
    """
    depth = values[key]
    cut: dict[str, Any] = {}
    for name, value in values.items():
        if holds_indices(name, value):
            cut[name] = [new for new, old in enumerate(layers) if old in value]
        elif isinstance(value, list) and len(value) == depth:
            cut[name] = [value[layer] for layer in layers]
        elif isinstance(value, dict) and value and all(str(entry).isdigit() for entry in value):
            by_layer = {int(entry): content for entry, content in value.items()}
            cut[name] = {new: by_layer[old] for new, old in enumerate(layers) if old in by_layer}
    return {**values, **cut, key: len(layers)}


def _kinds(built: Built, depth: int, values: Values) -> list[Any]:
    """Return what each layer stores, and its entries in the lists that have one per layer."""
    stored: list[list[Any]] = [[] for _ in range(depth)]
    for name, shape in built.stored.items():
        for part in re.findall(r"\.(\d+)\.", name)[:1]:
            if int(part) < depth:
                stored[int(part)].append((name.replace(f".{part}.", ".*.", 1), shape))
    lists = [value for value in values.values() if isinstance(value, list) and len(value) == depth]
    return [(tuple(sorted(found)), *(str(value[i]) for value in lists)) for i, found in enumerate(stored)]


def _small_widths(
    values: Values, model_type: str, keys: Mapping[str, str], alike: int | None
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Make every other size small, and return the keys of these sizes, and those that the config leaves unset."""
    small, size_keys, unset = dict(values), [], []
    widths = iter(_WIDTHS)
    skipped = {*keys.values(), "pretraining_tp", "chunk_size_feed_forward"}
    for key, value in values.items():
        if key in skipped or key.endswith("_token_id") or not (_is_count(value) or value is None):
            continue
        if (_is_count(value) and value < 1) or not _moves_widths(small, model_type, key, keys):
            continue
        size_keys.append(key)
        if value is None:
            unset.append(key)
        if value is None or value > _SMALL:
            if alike is not None and value is not None and value % 8 == 0:
                first = 16 if value == alike else value // 8
            else:
                first = next(widths, 24)
            for width in (first, 16, 32, 64, 128):
                with suppress(SourceError):
                    build({**small, key: width}, model_type)
                    small[key] = width
                    break
    return small, tuple(size_keys), tuple(unset)


def _moves_widths(values: Values, model_type: str, key: str, keys: Mapping[str, str]) -> bool:
    """Whether a key changes the shape of a tensor, and not only which layers hold which."""
    before = build(values, model_type).stored
    for _, built in variations(values, model_type, key):
        if any(built.stored.get(name, shape) != shape for name, shape in before.items()):
            return True
        if len({*built.stored} ^ {*before}) and "expert" in key:
            return True
    return False


def _breaking_key(values: Values, model_type: str, keys: Mapping[str, str]) -> str:
    """Return the key that makes a class impossible when it is small, as far as one alone does."""
    small = {"layers": min(_LAYERS, int(values[keys["layers"]])), **_SHAPES[1], "vocab": _VOCAB}
    for role, value in small.items():
        if role in keys:
            shallow = with_layers(values, keys["layers"], range(value)) if role == "layers" else values
            try:
                build({**shallow, keys[role]: value}, model_type)
            except SourceError:
                return f"{keys[role]}={value}"
    return "the sizes together"
