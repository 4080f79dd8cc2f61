"""Keys of transformers 4 in what transformers 5 writes: a checkpoint saved from memory reads like a published one.

`save_pretrained` of transformers 5 writes its own spelling alone. Version 4.57 ignores `rope_parameters` without a
word and takes its default rotary base, and it refuses the tokenizer. Most published checkpoints have the older
spelling, which version 5 and the other runtimes read, too. So the older keys are added, and those of version 5
remain: where it has both, version 5 reads the same values from either.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from ..core.json_files import read_json, write_json

_KNOWN: Mapping[str, Any] = read_json(Path(__file__).with_suffix(".json"))
"""What differs between architectures, by `model_type`.

- `names`: other names that the older config class has for `rope_theta` and `partial_rotary_factor`.
- `strict`: types of scaling for which the older config class accepts exactly `type` and these keys in `rope_scaling`.
- `renamed`: keys that version 5 writes under another name.
- `never_scaled`: older model classes that do not read `rope_scaling`.
- `local_base`: had a rotary base of their own for layers with a sliding window, `rope_local_base_freq`.
"""

FULL, SLIDING = "full_attention", "sliding_attention"


def config_with_older_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of a config.json of transformers 5 with the keys that transformers 4.57 reads.

    Args:
        raw: The contents of config.json. Keys that it has already are unchanged.

    Returns:
        The same with `torch_dtype` and, where there are `rope_parameters`, `rope_theta`, `rope_scaling` (null for the
        default type: two older classes scale by default), `partial_rotary_factor` and `rope_local_base_freq`.
    """
    model_type = str(raw.get("model_type"))
    older = {old: raw[new] for new, old in _KNOWN["renamed"].get(model_type, {}).items() if new in raw}
    if raw.get("dtype") is not None:
        older["torch_dtype"] = raw["dtype"]
    if rotary := raw.get("rope_parameters"):
        nested = FULL in rotary or SLIDING in rotary
        main = (rotary.get(FULL) or {}) if nested else rotary
        older |= _rotary_keys(main, model_type)
        if model_type in _KNOWN["local_base"] and (near := rotary.get(SLIDING)):
            older["rope_local_base_freq"] = near["rope_theta"]
    whole = {**raw, **{key: value for key, value in older.items() if key not in raw}}
    if rotary and "rope_scaling" not in raw and _loses_rotary(whole):
        del whole["rope_scaling"]
    return whole


def _loses_rotary(raw: Mapping[str, Any]) -> bool:
    """Whether a config class lets the older key overwrite its rotary parameters: those newer than version 4 may."""
    from transformers import AutoConfig

    values = {key: value for key, value in raw.items() if key not in ("model_type", "transformers_version")}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        try:
            AutoConfig.for_model(str(raw.get("model_type")), **deepcopy(values))
        except FutureWarning:
            return True
        except Exception:  # of many types; what reads the config next says what is wrong
            return False
    return False


def _rotary_keys(rotary: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Return the older keys of one set of rotary parameters."""
    names = _KNOWN["names"].get(model_type, {})
    own = ("rope_theta", "partial_rotary_factor")
    found = {names.get(key, key): rotary[key] for key in own if rotary.get(key) is not None}
    kind = rotary.get("rope_type", "default")
    if kind == "default":
        return {**found, "rope_scaling": None}
    scaling = {key: value for key, value in rotary.items() if key not in own}
    if kind == "longrope" and scaling.get("original_max_position_embeddings"):
        # The older code looks for it here alone.
        found["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    strict = _KNOWN["strict"].get(model_type, {})
    if kind in strict:
        scaling = {"type": kind, **{key: scaling[key] for key in strict[kind]}}
    return {**found, "rope_scaling": scaling}


def lost_before_5(raw: Mapping[str, Any]) -> str | None:
    """Return what the older keys cannot say of a model's rotary embedding, as a note for its card, or None.

    Args:
        raw: The contents of config.json.
    """
    rotary, model_type = raw.get("rope_parameters") or {}, raw.get("model_type")
    full, near = rotary.get(FULL), rotary.get(SLIDING)
    strict = _KNOWN["strict"].get(model_type, {})
    lost = _is_scaled(rotary) and (
        model_type in _KNOWN["never_scaled"] or bool(strict and rotary["rope_type"] not in strict)
    )
    if full and near:
        lost |= _is_scaled(near) or (
            model_type not in _KNOWN["local_base"] and full["rope_theta"] != near["rope_theta"]
        )
    return "needs transformers 5: older versions cannot compute its rotary embedding" if lost else None


def _is_scaled(rotary: Mapping[str, Any]) -> bool:
    return bool(rotary.get("rope_type", "default") != "default")


def tokenizer_with_older_keys(settings: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return the contents of a tokenizer_config.json of transformers 5 in a form that transformers 4.57 reads, too.

    Args:
        settings: The contents of tokenizer_config.json, beside a tokenizer.json.
        tokenizer: The tokenizer that they were saved from.

    Returns:
        The same with `additional_special_tokens` instead of a list of `extra_special_tokens`, named tokens in
        `extra_special_tokens`, and the class that reads tokenizer.json as it is. The older classes with names of their
        own set up the tokens at the beginning of a text anew, from settings that version 5 no longer writes.
    """
    found = dict(settings)
    if isinstance(found.get("extra_special_tokens"), list):
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    if named := found.pop("model_specific_special_tokens", None):
        found["extra_special_tokens"] = named
    if "auto_map" not in found:
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
        # The default of this class includes token_type_ids, which no decoder takes.
        found.setdefault("model_input_names", list(tokenizer.model_input_names))
    return found


def add_older_keys(folder: Path, tokenizer: Any = None) -> str | None:
    """Add the keys of transformers 4 to what transformers 5 saved into a folder.

    Args:
        folder: A checkpoint that `save_pretrained` wrote.
        tokenizer: The tokenizer that was saved beside it; None where its files were copied from a source.

    Returns:
        What cannot be said in the older keys, as a note for the card, or None.
    """
    raw = read_json(folder / "config.json")
    write_json(folder / "config.json", config_with_older_keys(raw))
    if tokenizer is not None and (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer_config.json"
        write_json(path, tokenizer_with_older_keys(read_json(path), tokenizer))
    return lost_before_5(raw)
