"""What llama.cpp takes from a GGUF file and what it assumes, by architecture: the shapes that it cannot run.

A GGUF file holds less than config.json. What it has no key for, llama.cpp derives from the architecture or from other
numbers: which layers see a window, which go without rotary positions, how large a head is. A cut that changes such a
thing gives a file that does not load, or that loads and predicts something else.

The facts are data, `runtimes/llama.cpp.json`. `tests/helpers/llama_cpp_facts.py` writes that file: it exports tiny
models, loads them in llama.cpp, and compares predictions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .expressions import evaluate
from .layer_order import LayerOrder

STORED = "stored"
"""The file holds it, so that any value can be exported."""

SLIDING, FULL, STATE = "sliding_attention", "full_attention", "linear_attention"


@dataclass(frozen=True)
class RuntimeLimits:
    """What llama.cpp runs of one architecture. The defaults stand for whatever transformers runs.

    Args:
        converted: Whether llama.cpp's converter takes the architecture, and llama.cpp loads what it writes.
        agrees: Whether llama.cpp then predicts what transformers does, for any model of it that was tried.
        head_size: `stored`, or `width` where a head is taken to be the hidden size over the number of heads.
        key_value_heads: `stored`, or `query heads` where there are taken to be as many.
        intermediate_size: `stored`, or `4 * width` where the MLP is taken to be four times as wide as the model.
        sliding_window: `stored` with its layers; `ignored`, so that every layer sees all tokens; or a number n: every
            n-th layer sees all tokens, the others a window.
        sliding_window_depth: Number of layers without which windows are ignored; None where any will do.
        needs_window: Whether a file with a sliding window but no layer that has it does not load.
        no_rope_layers: Every how many layers one goes without rotary positions; None where there is no such layer.
        width_scaled_depth: Number of layers at which attention is scaled by the hidden size over the number of
            heads, and otherwise by the size of a head; None where the scale is stored or is always that of a head.
        full_attention: Every how many layers one has attention where the others have linear attention; None where
            there are no such layers, or where the file says which.
        demands: Expression over sizes that has to be true, to what llama.cpp takes for given, in words.
        requires: Config key to the one value that runs.
    """

    converted: bool = True
    agrees: bool = True
    head_size: str = STORED
    key_value_heads: str = STORED
    intermediate_size: str = STORED
    sliding_window: str | int = STORED
    sliding_window_depth: int | None = None
    needs_window: bool = False
    no_rope_layers: int | None = None
    width_scaled_depth: int | None = None
    full_attention: int | None = None
    demands: Mapping[str, str] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)


@cache
def llama_cpp_limits() -> Mapping[str, RuntimeLimits]:
    """Return what llama.cpp runs of every architecture that the package describes, by `model_type`."""
    data = json.loads((Path(__file__).parent / "runtimes" / "llama.cpp.json").read_text(encoding="utf-8"))
    return {model_type: RuntimeLimits(**entry) for model_type, entry in data["architectures"].items()}


def model_limit(model_type: str, config: Any) -> str | None:
    """Return why llama.cpp runs no cut of a model whatever its shape, or None.

    Args:
        model_type: Its architecture.
        config: Its config, or that of a cut.
    """
    limits = llama_cpp_limits().get(model_type)
    if limits is None:
        return None
    if not limits.converted or not limits.agrees:
        return (
            unknown_to_converter(model_type) or f"llama.cpp predicts something else for {model_type} than transformers"
        )
    for key, value in limits.requires.items():
        found = getattr(config, key, None)
        if found != value and (found or value):  # an empty list, false and an absent key are the same
            return f"llama.cpp runs {model_type} with {key}={_text(value)} alone, and this model has {_text(found)}"
    return ignored_window(model_type, config)


def unknown_to_converter(model_type: str) -> str | None:
    """Return the line that says that llama.cpp's converter does not take an architecture; None where it may.

    Args:
        model_type: The architecture. Of one that the package does not describe, only the converter can say.
    """
    limits = llama_cpp_limits().get(model_type)
    if limits is None or limits.converted:
        return None
    return f"llama.cpp's converter does not take {model_type}"


def ignored_window(model_type: str, config: Any) -> str | None:
    """Return the line that says that llama.cpp leaves out a model's sliding window; None where it does not.

    Args:
        model_type: Its architecture.
        config: Its config.
    """
    limits = llama_cpp_limits().get(model_type)
    window = sliding_window(config)
    if limits is None or window is None or limits.sliding_window != "ignored":
        return None
    return (
        f"llama.cpp does not apply sliding_window={window} of {model_type}, so that its predictions differ behind "
        f"{window:,} tokens"
    )


def sliding_window(config: Any) -> int | None:
    """Return the number of tokens that layers with a sliding window see; None where no layer ever sees fewer than all.

    Args:
        config: A model's config.
    """
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    positions = getattr(config, "max_position_embeddings", None)
    if not window or (types is not None and SLIDING not in types) or (positions and window >= positions):
        return None
    return int(window)


def size_limit(model_type: str, config: Any, sizes: Mapping[str, int]) -> str | None:
    """Return why llama.cpp cannot run a shape, whichever of its layers and units are retained, or None.

    Args:
        model_type: The architecture that the shape is written as.
        config: The model's config.
        sizes: The sizes of the shape, as `Binding.resized` returns them.
    """
    limits = llama_cpp_limits().get(model_type)
    if limits is None:
        return None
    heads, kv, hidden = (sizes[name] for name in ("heads", "kv", "hidden"))
    head_dim = sizes.get("v_head_dim", sizes["head_dim"])
    if limits.head_size == "width" and heads * head_dim != hidden:
        return (
            f"llama.cpp takes the size of a head of {model_type} from the width, so that num_attention_heads has to "
            f"be {hidden // head_dim}, not {heads}: {hidden} / {head_dim}"
        )
    if limits.key_value_heads == "query heads" and kv != heads:
        return (
            f"llama.cpp runs {model_type} with as many key-value heads as query heads alone, so that "
            f"num_key_value_heads has to be {heads}, not {kv}"
        )
    if limits.intermediate_size == "4 * width" and sizes["ffn"] != 4 * hidden:
        return (
            f"llama.cpp takes the MLP of {model_type} to be four times as wide as the model, so that "
            f"intermediate_size has to be {4 * hidden}, not {sizes['ffn']}"
        )
    for demand, words in limits.demands.items():
        if not evaluate(demand, sizes.get):
            return f"llama.cpp takes {words}"
    scale = getattr(config, "query_pre_attn_scalar", None)
    if limits.width_scaled_depth is not None and scale is not None:
        wide = sizes["layers"] == limits.width_scaled_depth
        taken = hidden / heads if wide else head_dim
        if taken != scale:
            source = "hidden_size / num_attention_heads" if wide else "head_dim"
            return (
                f"llama.cpp scales the attention of {model_type} with {sizes['layers']} layers by {source} = "
                f"{taken:g}, and this model has query_pre_attn_scalar={scale:g}"
            )
    return None


def layer_limit(model_type: str, config: Any) -> str | None:
    """Return why llama.cpp would run the layers of a model otherwise than transformers does, or None.

    Args:
        model_type: Its architecture.
        config: Its config, with the lists of what its layers are.
    """
    limits = llama_cpp_limits().get(model_type)
    if limits is None:
        return None
    if _lacks_window(limits, config):
        return f"layer_types: llama.cpp runs {model_type} with at least one {SLIDING} layer, and this model has none"
    wanted = _places(model_type, limits, config, config.num_hidden_layers)
    for key, (rule, places) in wanted.items():
        found = list(getattr(config, key))
        if places is None:
            return f"{key}: {rule}"
        if found != places:
            layer = next(i for i, pair in enumerate(zip(found, places, strict=True)) if pair[0] != pair[1])
            return f"{key}: {rule}, and layer {layer} of this model is {_text(found[layer])}"
    return None


def depth_limit(model_type: str, config: Any, depth: int, first: int, last: int) -> str | None:
    """Return why no choice of `depth` layers would be run as transformers runs it, or None.

    Args:
        model_type: The architecture.
        config: The model's config.
        depth: Retained layers.
        first: Protected layers at the beginning.
        last: Protected layers at the end.
    """
    limits = llama_cpp_limits().get(model_type)
    wanted = {} if limits is None else _places(model_type, limits, config, depth)
    for key, (rule, places) in wanted.items():
        if places is None:
            return f"{key}: {rule}"
        kinds = tuple(getattr(config, key))
        removable = range(first, len(kinds) - last)
        if not LayerOrder(kinds, tuple(places)).can_follow(range(len(kinds)), removable):
            return f"{key}: {rule}, and no {depth} layers of this model with its protected ones are in that order"
    return None


def layer_order(model_type: str, config: Any, depth: int) -> LayerOrder | None:
    """Return the order of layers that llama.cpp takes for given at a depth; None where it takes any.

    Args:
        model_type: The architecture.
        config: The model's config.
        depth: Retained layers.
    """
    limits = llama_cpp_limits().get(model_type)
    wanted = {} if limits is None else _places(model_type, limits, config, depth)
    lists = [places for _, places in wanted.values() if places is not None]
    if not lists or len(lists) < len(wanted):
        return None
    kinds = zip(*(getattr(config, key) for key in wanted), strict=True)
    return LayerOrder(tuple(kinds), tuple(zip(*lists, strict=True)))


def _lacks_window(limits: RuntimeLimits, config: Any) -> bool:
    types = getattr(config, "layer_types", None)
    if not limits.needs_window or not types or not getattr(config, "sliding_window", None):
        return False
    return SLIDING not in types


def _places(
    model_type: str, limits: RuntimeLimits, config: Any, depth: int
) -> dict[str, tuple[str, list[Any] | None]]:
    """Return what llama.cpp takes the layers to be, by config key: in words, and as a list; None if none will do."""
    wanted: dict[str, tuple[str, list[Any] | None]] = {}
    types = getattr(config, "layer_types", None)
    if types is not None and getattr(config, "sliding_window", None):
        every = limits.sliding_window
        if limits.sliding_window_depth not in (None, depth):
            only = f"{model_type} with {limits.sliding_window_depth} layers alone, not {depth}"
            wanted["layer_types"] = (f"llama.cpp applies sliding windows to {only}", None)
        elif isinstance(every, int):
            rule = (
                f"llama.cpp lets every {_ordinal(every)} layer of {model_type} see all tokens and the others a window"
            )
            wanted["layer_types"] = (rule, [FULL if (layer + 1) % every == 0 else SLIDING for layer in range(depth)])
    if types is not None and limits.full_attention is not None:
        every = limits.full_attention
        place = f"in every {_ordinal(every)} layer of {model_type}"
        rule = f"llama.cpp runs attention {place} and linear attention in the others"
        wanted["layer_types"] = (rule, [FULL if (layer + 1) % every == 0 else STATE for layer in range(depth)])
    if limits.no_rope_layers is not None and getattr(config, "no_rope_layers", None):
        every = limits.no_rope_layers
        rule = f"llama.cpp leaves rotary positions out of every {_ordinal(every)} layer of {model_type}"
        wanted["no_rope_layers"] = (rule, [int((layer + 1) % every != 0) for layer in range(depth)])
    return wanted


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
