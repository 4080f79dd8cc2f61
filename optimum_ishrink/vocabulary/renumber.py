"""Token ids in configs: finding them, and writing those of a trimmed vocabulary in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ShapeError

_ENDINGS = ("_token_id", "_token_ids", "_token_index", "_token_indices")
_NEEDS = ("forced_decoder_ids", "force_words_ids", "lang_to_id", "task_to_id")
_DISPENSABLE = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")
"""Keys whose entries say what not to generate, or what less or more: they lose their point with the token."""
_OTHER_PARTS = ("vision_config",)
"""Configs of parts that read no tokens: ids in them, defaults mostly, are of other vocabularies."""


def config_ids(values: Mapping[str, Any]) -> dict[str, set[int]]:
    """Return the ids of tokens that a config needs, by key; those that say what not to generate are not among them.

    Args:
        values: The contents of a config.json or generation_config.json.
    """
    found: dict[str, set[int]] = {}
    for key, value in values.items():
        if key.endswith(_ENDINGS) or key in _NEEDS:
            _mapped(key, value, lambda number, key=key: found.setdefault(key, set()).add(number))  # type: ignore[misc]
        elif isinstance(value, Mapping) and key not in (*_DISPENSABLE, *_OTHER_PARTS):
            for inner, numbers in config_ids(value).items():
                found.setdefault(inner, set()).update(numbers)
    return found


def renumber_ids(
    values: Mapping[str, Any], rows: Sequence[int], total: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return a config with the ids of a trimmed vocabulary, and what was left out of it.

    Ids are looked for in nested configs, too. Negative ones stand for no token and stay, and `vocab_size` is not
    touched.

    Args:
        values: The contents of a config.json or generation_config.json.
        rows: The rows that stay, ascending; a token's new id is its position.
        total: Rows of the whole vocabulary. Ids beyond it, such as defaults of a class, stand for no token and stay;
            None where there are none.

    Returns:
        The contents, keys in their order, and a line for each key that lost entries with removed tokens: those that
        say what not to generate.

    Raises:
        ShapeError: A key needs a token that was removed.
    """
    new = {int(row): number for number, row in enumerate(rows)}

    def change(number: int) -> int:
        return number if total is not None and number >= total else new[number]

    notes: list[str] = []
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in _DISPENSABLE and value:
            entries = value.items() if isinstance(value, Mapping) else value
            kept = [mapped for entry in entries if (mapped := _mapped_or_none(key, entry, change)) is not None]
            if lost := len(value) - len(kept):
                notes.append(f"{key} lost {lost} of {len(value)} entries, whose tokens were removed")
            if kept:  # without the key nothing is suppressed either, and transformers refuses some empty lists
                found[key] = kept
        elif key.endswith(_ENDINGS) or key in _NEEDS:
            try:
                found[key] = _mapped(key, value, change)
            except KeyError as error:
                raise ShapeError(
                    f"{key} names token {error}, which would be removed; let it stay, or change {key} in the base's "
                    "configs"
                ) from None
        elif isinstance(value, Mapping) and key not in _OTHER_PARTS:
            found[key], inner = renumber_ids(value, rows, total)
            notes += inner
        else:
            found[key] = value
    return found, notes


def _mapped_or_none(key: str, entry: Any, change: Callable[[int], int]) -> Any:
    """Return an entry with its ids changed, or None where one of them was removed."""
    try:
        return _mapped(key, [entry], change)[0]
    except KeyError:
        return None


def _mapped(key: str, value: Any, change: Callable[[int], Any]) -> Any:
    """Return a key's value with each of its ids changed, however deep in lists."""
    if key == "forced_decoder_ids" and value:
        return [[position, _mapped("", number, change)] for position, number in value]
    if key == "sequence_bias" and value:
        return [[_mapped("", numbers, change), bias] for numbers, bias in value]
    if isinstance(value, Mapping):
        return {name: _mapped("", number, change) for name, number in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped("", number, change) for number in value]
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return change(value)
    return value
