"""What is saved from memory has the keys of transformers 4; `make compat` loads it there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from optimum_ishrink.architectures.model_class import parse_config
from optimum_ishrink.checkpoint.older_keys import (
    config_with_older_keys,
    lost_before_5,
    tokenizer_with_older_keys,
)
from optimum_ishrink.checkpoint.source import open_source
from tests.helpers.older_versions import (
    ROTARY,
    UNKNOWN_BEFORE_5,
    memory_config,
    memory_configs,
    tokenizer_with_extra_tokens,
)
from tests.helpers.tiny import tiny_model

LLAMA3 = {key: value for key, value in ROTARY["llama3"].items() if key != "rope_theta"}
WIDE, NEAR = {"rope_type": "default", "rope_theta": 2e6}, {"rope_type": "default", "rope_theta": 2e4}


def _raw(model_type: str, kind: str = "", **changes: Any) -> dict[str, Any]:
    return {**memory_config(model_type, 0, kind, **changes).to_dict(), "model_type": model_type}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (_raw("llama", "llama3"), {"rope_theta": 5e4, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
        (_raw("llama", "default"), {"rope_theta": 3e4, "rope_scaling": None}),
        (
            _raw("gemma3_text", rope_parameters={"full_attention": WIDE, "sliding_attention": NEAR}),
            {"rope_theta": 2e6, "rope_scaling": None, "rope_local_base_freq": 2e4},
        ),
        (
            _raw("glm", rope_parameters={**NEAR, "partial_rotary_factor": 0.25}),
            {"rope_theta": 2e4, "partial_rotary_factor": 0.25},
        ),
        (
            _raw("gpt_neox", rope_parameters={**NEAR, "partial_rotary_factor": 0.5}),
            {"rotary_emb_base": 2e4, "rotary_pct": 0.5},
        ),
        (_raw("olmo", "linear"), {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        (_raw("gpt_oss", "default"), {"rope_scaling": None}),  # its older class scales by default
        (_raw("qwen3_moe"), {"num_experts": 4, "num_local_experts": 4}),
    ],
)
def test_the_older_keys(raw: dict[str, Any], expected: dict[str, Any]) -> None:
    found = config_with_older_keys(raw)
    assert {key: found[key] for key in expected} == expected
    assert {key: found[key] for key in raw} == raw
    assert config_with_older_keys(found) == found


def test_longrope_has_its_length_where_each_class_looks_for_it() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    rotary = {"rope_type": "longrope", "rope_theta": 1e4, **factors, "original_max_position_embeddings": 32}
    strict = config_with_older_keys({"model_type": "phi3", "rope_parameters": rotary})
    assert strict["rope_scaling"] == {"type": "longrope", **factors}
    assert strict["original_max_position_embeddings"] == 32
    free = config_with_older_keys({"model_type": "llama", "rope_parameters": rotary})
    assert free["rope_scaling"] == {**factors, "rope_type": "longrope", "original_max_position_embeddings": 32}
    assert free["original_max_position_embeddings"] == 32


def test_the_dtype_has_both_names() -> None:
    assert config_with_older_keys({"dtype": "float32"}) == {"dtype": "float32", "torch_dtype": "float32"}
    assert config_with_older_keys({"model_type": "gpt2"}) == {"model_type": "gpt2"}


def _plain(config: Any) -> dict[str, Any]:
    """A config's values, with rotary parameters that have one of both names of their type."""
    values = dict(config.to_dict())
    rotary = {key: value for key, value in (values.pop("rope_parameters", None) or {}).items() if key != "type"}
    older = {
        "rotary_emb_base",
        "rotary_pct",
        "rope_theta",
        "partial_rotary_factor",
        "original_max_position_embeddings",
    }
    return {"rotary": rotary, **{key: value for key, value in values.items() if key not in older}}


@pytest.mark.parametrize(("name", "config"), list(memory_configs()), ids=lambda value: str(value)[:30])
def test_this_version_reads_the_same_config(name: str, config: Any) -> None:
    raw = {**config.to_dict(), "model_type": config.model_type, "dtype": "float32"}
    assert _plain(parse_config(config_with_older_keys(raw))) == _plain(parse_config(raw))


@given(theta=st.floats(1e3, 1e7), factor=st.floats(1.5, 64), kind=st.sampled_from(["linear", "dynamic", "yarn"]))
def test_all_rotary_values_arrive(theta: float, factor: float, kind: str) -> None:
    rotary = {"rope_type": kind, "rope_theta": theta, "factor": factor, "original_max_position_embeddings": 32}
    raw = {**_raw("llama"), "rope_parameters": rotary}
    found = config_with_older_keys(raw)
    assert found["rope_theta"] == theta
    assert found["rope_scaling"]["factor"] == factor
    # With the older keys alone it is the same model.
    alone = {key: value for key, value in found.items() if key != "rope_parameters"}
    assert parse_config(alone).rope_parameters == parse_config(raw).rope_parameters


def test_what_older_versions_cannot_compute_is_noted() -> None:
    both = {"full_attention": WIDE, "sliding_attention": NEAR}
    assert lost_before_5(_raw("gemma3_text", rope_parameters=both)) is None
    assert "needs transformers 5" in str(lost_before_5({"model_type": "olmo3", "rope_parameters": both}))
    assert lost_before_5({"model_type": "gpt2"}) is None
    for model_type, kind in sorted(UNKNOWN_BEFORE_5 - {("phi3", kind) for kind in ROTARY}):
        rotary = {"rope_type": kind, **ROTARY[kind]}
        assert lost_before_5({"model_type": model_type, "rope_parameters": rotary}), (model_type, kind)
    scaled = {"full_attention": WIDE, "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 2e4}}
    model = tiny_model(memory_config("gemma3_text", rope_parameters=scaled))
    source = open_source(model, tokenizer=tokenizer_with_extra_tokens())
    assert source.notes[0] == "saved from a model in memory"
    assert source.notes[1].startswith("needs transformers 5")


def test_a_tokenizer_from_memory() -> None:
    tokenizer = tokenizer_with_extra_tokens()
    source = open_source(tiny_model(memory_config("llama")), tokenizer=tokenizer)
    settings = json.loads((source.folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<|call|>"]
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert "extra_special_tokens" not in settings
    again = AutoTokenizer.from_pretrained(source.folder)
    assert again.extra_special_tokens == ["<|call|>"]
    assert again("Gate <|call|> 9")["input_ids"] == tokenizer("Gate <|call|> 9")["input_ids"]


def test_named_tokens_and_own_classes() -> None:
    tokenizer = tokenizer_with_extra_tokens()
    named = {"model_specific_special_tokens": {"image_token": "<i>"}, "extra_special_tokens": ["<a>"]}
    found = tokenizer_with_older_keys({"tokenizer_class": "TokenizersBackend", **named}, tokenizer)
    assert found["extra_special_tokens"] == {"image_token": "<i>"}
    assert found["additional_special_tokens"] == ["<a>"]
    own = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    assert tokenizer_with_older_keys(own, tokenizer) == own


def test_named_tokens_are_read_again(tmp_path: Path) -> None:
    tokenizer = tokenizer_with_extra_tokens()
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["model_specific_special_tokens"] = {"image_token": "<|call|>"}
    path.write_text(json.dumps(tokenizer_with_older_keys(settings, tokenizer)))
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.image_token == "<|call|>"
    assert again.extra_special_tokens == ["<|call|>"]
