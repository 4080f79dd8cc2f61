"""Classes made tiny from configs of real sizes."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from optimum_ishrink.drafting.checking import check_description
from optimum_ishrink.drafting.proof import TOGETHER
from optimum_ishrink.drafting.tiny_class import config_values
from optimum_ishrink.drafting.tiny_values import make_tiny

STATE_HEADS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "granitemoehybrid": {
        "hidden_size": 1536,
        "intermediate_size": 512,
        "num_hidden_layers": 40,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "num_local_experts": 64,
        "num_experts_per_tok": 6,
        "mamba_n_heads": 48,
        "mamba_d_head": 64,
        "layer_types": ["attention" if layer % 10 == 5 else "mamba" for layer in range(40)],
    },
}
"""Configs that are refused unless heads times their width are twice the hidden size."""


def saved(model_type: str, folder: Path) -> dict[str, Any]:
    AutoConfig.for_model(model_type, **STATE_HEADS[model_type]).save_pretrained(folder)
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return raw


@pytest.mark.parametrize("model_type", STATE_HEADS)
def test_factors_of_the_width_follow_it(model_type: str, tmp_path: Path) -> None:
    tiny = make_tiny(saved(model_type, tmp_path))
    values = tiny.values
    assert values["hidden_size"] <= 128
    assert values["mamba_n_heads"] * values["mamba_d_head"] == 2 * values["hidden_size"]
    assert tiny.depth <= 12


def test_infinity_is_read_as_transformers_writes_it(tmp_path: Path) -> None:
    raw = saved("bamba", tmp_path)
    assert raw["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert list(config_values(raw)["time_step_limit"]) == [0.0, inf]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", STATE_HEADS)
def test_a_description_is_proved_from_a_config_of_the_real_size(model_type: str, tmp_path: Path) -> None:
    claims = {proof.claim: proof.holds for proof in check_description(saved(model_type, tmp_path)).proofs}
    assert all(claims.values())
    assert {"num_hidden_layers", "num_key_value_heads", "intermediate_size", TOGETHER} <= claims.keys()
