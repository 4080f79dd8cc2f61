"""A description put together from what was found, as the JSON object of its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from ..architectures.description import GROUPS, LAYERS, NEURONS, ROWS
from ..core.key_value_cache import keeps_cache
from ..errors import SourceError
from .axes_choice import Axes
from .observing import Observed
from .proof import DRAFTED, HEADS
from .sizes import Sizes
from .structure import Structure
from .tiny_class import build, random_model
from .tiny_values import Tiny, holds_indices

_DERIVED = "the modelling code derives head_dim from hidden_size and the number of heads, whatever the config says"


def assemble(tiny: Tiny, axes: Axes, sizes: Sizes, structure: Structure, fixed: Mapping[str, str]) -> dict[str, Any]:
    """Return a description with every dimension that its config keys can express.

    Args:
        tiny: The class.
        axes: The axes of its tensors.
        sizes: Its sizes.
        structure: What the running model showed.
        fixed: Why a dimension cannot change, by its config key, where that is known.
    """
    return {
        "model_type": tiny.model_type,
        "models": "",
        "sizes": {**axes.sizes, **({} if _keeps_cache(tiny) else {"cache": "0"})},
        "dimensions": {
            key: {"fixed": fixed[key]} if key in fixed else _dimension(tiny, sizes, key) for key in DRAFTED
        },
        "rules": [],
        "per_layer": per_layer(tiny),
        "layer_indices": _layer_indices(tiny),
        "tensors": {pattern: ", ".join(texts) for pattern, texts in axes.tensors.items()},
        **({"memory": {p: ", ".join(texts) for p, texts in axes.memory.items()}} if axes.memory else {}),
        **({"transposed": sorted(structure.transposed & axes.tensors.keys())} if structure.transposed else {}),
    }


def _keeps_cache(tiny: Tiny) -> bool:
    return keeps_cache(AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[tiny.model_type]])


def fixed_dimensions(tiny: Tiny, axes: Axes, sizes: Sizes) -> dict[str, str]:
    """Return the dimensions that no config key can change, with the reason.

    Args:
        tiny: The class.
        axes: The axes of its tensors.
        sizes: Its sizes.
    """
    fixed: dict[str, str] = {}
    if "head_dim" not in tiny.keys:
        fixed |= {GROUPS: _DERIVED, HEADS: _DERIVED}
    if sizes.width_key is None:
        fixed[NEURONS] = f"no config key of its own holds the width of the MLP, which is {sizes.expressions['ffn']}"
    shared = [
        pattern
        for pattern, texts in axes.tensors.items()
        if "experts" in sizes.expressions
        and pattern.count("*") == 1
        and texts[0] != "experts"
        and any("ffn" in text.strip("[]").replace(";", "*").replace(" ", "").split("*") for text in texts)
    ]
    if shared:
        fixed[NEURONS] = (
            f"{shared[0].split('*.', 1)[-1]} is as wide as the experts, of which each loses other neurons: "
            f"{sizes.width_key} holds both widths"
        )
    if any("group_rows" in text for texts in axes.tensors.values() for text in texts):
        fixed[HEADS] = "query heads lie in one tensor with the keys and values of their group"
    return fixed


def _dimension(tiny: Tiny, sizes: Sizes, key: str) -> dict[str, Any]:
    keys = tiny.keys
    heads = {keys[role]: role for role in ("heads", "head_dim") if role in keys}
    writes: Mapping[str, dict[str, str]] = {
        LAYERS: {keys["layers"]: "layers"},
        GROUPS: {**({keys["kv"]: "kv"} if "kv" in keys else {}), **heads},
        HEADS: heads,
        NEURONS: {sizes.width_key or "": "ffn"},
        ROWS: {keys["vocab"]: "vocab"},
    }
    return {"writes": writes[key]}


def per_layer(tiny: Tiny) -> list[str]:
    """Return the config keys whose lists have one entry per layer.

    Args:
        tiny: The class.
    """
    return [
        key
        for key, value in tiny.values.items()
        if isinstance(value, list) and len(value) == tiny.depth and not holds_indices(key, value)
    ]


def _layer_indices(tiny: Tiny) -> list[str]:
    """Return the config keys whose lists hold indices of layers: with an index in it, that layer's tensors differ."""
    found = []
    before = tiny.built.stored
    for key, value in tiny.values.items():
        if not holds_indices(key, value):
            continue
        other = [i for i in range(tiny.depth) if i not in value][:1]
        try:
            after = build({**tiny.values, key: other}, tiny.model_type).stored
        except SourceError:
            continue
        moved = set(before.keys() ^ after.keys())
        if moved and all(any(f".{i}." in name for i in {*value, *other}) for name in moved):
            found.append(key)
    return found


def find_rules(tiny: Tiny, sizes: Sizes, *, heads: bool) -> list[dict[str, str]]:
    """Return what the class demands of its sizes, found by trying sizes that do not divide.

    Args:
        tiny: The class.
        sizes: Its sizes.
        heads: Whether the number of heads can change.
    """
    rules, keys = [], tiny.keys
    # Half as many again: a multiple of the groups, but no divisor of the residual stream.
    odd = {**tiny.values, keys["heads"]: 3 * tiny.values[keys["heads"]] // 2}
    if heads and _refuses(odd, tiny.model_type):
        hidden, name = keys["hidden"], keys["heads"]
        rules.append(
            {
                "require": f"{hidden} % {name} == 0",
                "reason": f"the {tiny.model_type} class demands that {hidden} is a multiple of {name}",
            }
        )
    if sizes.width_key is not None and _refuses({**tiny.values, sizes.width_key: 13}, tiny.model_type):
        rules.append(
            {
                "require": f"{sizes.width_key} % 8 == 0",
                "reason": f"the class computes with no {sizes.width_key} that is not a multiple of 8"
                if "experts" not in sizes.expressions
                else "the experts' grouped matrix multiplication wants widths that are multiples of 8",
            }
        )
    return rules


def flag_rules(observed: Observed, sizes: Sizes) -> list[dict[str, str]]:
    """Return the flags with which the class computes only where the heads fill the residual stream.

    Args:
        observed: The class at several sizes, and with its flags turned.
        sizes: Its sizes.
    """
    hidden, heads = observed.tiny.keys["hidden"], observed.tiny.keys["heads"]
    derived, head_dim = f"{hidden} // {heads}", sizes.expressions["head_dim"]
    found = []
    for key, turned in observed.flags.items():
        if head_dim != derived and turned.tiny.values[hidden] != observed.tiny.values[hidden]:
            found.append(
                {
                    "require": f"{key} == {int(observed.tiny.values[key])} or ({head_dim}) == {derived}",
                    "reason": f"with {key}={turned.tiny.values[key]} a head is {derived} wide, whatever head_dim says",
                }
            )
    return found


def _refuses(values: Mapping[str, Any], model_type: str) -> bool:
    try:
        random_model(values, model_type)
    except SourceError:
        return True
    return False
