"""Which layers a cut of a hybrid can have: one with attention stays, and periods are met."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.architectures.config_edit import edit_config
from optimum_ishrink.architectures.layer_patterns import check_pattern, examples, layer_pattern
from optimum_ishrink.architectures.model_class import bind_config, expected_tensors, parse_config
from optimum_ishrink.checkpoint.source import source_of_config
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.stage import check_shape
from tests.helpers.cutting import random_plan
from tests.helpers.hybrid_variants import FULL, STATE
from tests.helpers.tiny import tiny_raw_config

ANY = {"keep_first_layers": 0, "keep_last_layers": 0}


def binding_of(model_type: str, **changes: Any) -> Any:
    return bind_config(tiny_raw_config(model_type, **changes))[1]


def test_models_with_layers_of_one_kind_have_no_pattern() -> None:
    assert layer_pattern(binding_of("llama"), 2) is None
    assert layer_pattern(binding_of("falcon_h1"), 2) is None
    assert layer_pattern(binding_of("lfm2"), 4) is None
    assert examples(binding_of("llama"), 3, range(4)) == [(0, 1, 2), (1, 2, 3)]


@given(st.data())
def test_a_layer_with_attention_stays(data: st.DataObject) -> None:
    attention = data.draw(st.sets(st.integers(0, 5), min_size=1, max_size=5))
    kinds = [FULL if layer in attention else "conv" for layer in range(6)]
    binding = binding_of("lfm2", num_hidden_layers=6, layer_types=kinds)
    count, first = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 1))
    scores = data.draw(st.lists(st.integers(0, 3).map(float), min_size=6, max_size=6))
    pattern, removable = layer_pattern(binding, count), range(first, 6)
    assert pattern is not None
    able = [
        layers
        for layers in combinations(range(6), count)
        if set(range(first)) <= set(layers) and attention & set(layers)
    ]
    found = pattern.choose(scores, removable)
    if not able:
        assert found is None
        return
    assert found in able
    assert sum(scores[layer] for layer in found) == max(sum(scores[layer] for layer in layers) for layers in able)
    left = sorted(data.draw(st.sets(st.integers(first, 5))) | set(range(first)))
    if len(left) >= count:
        assert pattern.can_follow(left, removable) == any(set(layers) <= set(left) for layers in able)


def test_the_plan_keeps_a_layer_with_attention_whatever_the_scores() -> None:
    for seed in range(6):
        plan, _, _ = random_plan(tiny_raw_config("lfm2"), {"num_hidden_layers": 1}, seed)
        assert plan.layers in ((1,), (3,))


def test_depths_that_cannot_hold_what_is_needed_name_the_nearest() -> None:
    source = source_of_config(tiny_raw_config("olmo_hybrid"))
    with pytest.raises(
        ShapeError,
        match="num_hidden_layers=1 cannot hold the layers of olmo_hybrid with the 0 that are protected: it needs a "
        "layer with attention and a linear_attention layer and a full_attention layer; nearest num_hidden_layers: 2",
    ):
        check_shape(source, ShapeOptions(num_hidden_layers=1, **ANY))
    source = source_of_config(tiny_raw_config("lfm2", layer_types=["conv", "conv", FULL, "conv"]))
    request = ShapeOptions(num_hidden_layers=2, keep_first_layers=2, keep_last_layers=0)
    with pytest.raises(
        ShapeError, match="with the 2 that are protected: it needs a layer with.*: 3; or protect others"
    ):
        check_shape(source, request)
    check_shape(source, ShapeOptions(num_hidden_layers=1, **ANY))


def named(config: Any, prefix: str) -> list[bool]:
    period, offset = getattr(config, f"{prefix}_layer_period"), getattr(config, f"{prefix}_layer_offset")
    return [layer % period == offset for layer in range(config.num_hidden_layers)]


@pytest.mark.parametrize("depth", [2, 3, 5, 7])
def test_periods_are_met_by_the_choice_of_layers(depth: int) -> None:
    raw = tiny_raw_config(
        "jamba", num_hidden_layers=8, attn_layer_period=4, attn_layer_offset=2, num_experts=4, num_experts_per_tok=2
    )
    config, binding = bind_config(raw)
    for seed in range(4):
        plan, _, _ = random_plan(raw, {"num_hidden_layers": depth}, seed)
        edited = edit_config(raw, config, binding, {**binding.shape, "num_hidden_layers": depth}, plan.layers)
        result = parse_config(edited)
        for prefix in ("attn", "expert"):
            assert named(result, prefix) == [named(config, prefix)[layer] for layer in plan.layers]
        assert any(named(result, "attn"))
        kept = {
            bound.in_layer(plan.layers.index(bound.layer)) if bound.layer is not None else bound.name
            for bound in binding.tensors.values()
            if bound.layer is None or bound.layer in plan.layers
        }
        assert kept == expected_tensors(result).keys()


def test_many_combinations_of_periods_are_not_all_compared() -> None:
    binding = binding_of("jamba", num_hidden_layers=32, attn_layer_period=8, attn_layer_offset=4)
    pattern = layer_pattern(binding, 28)
    assert pattern is not None and 0 < len(pattern.orders) < 1000
    found = pattern.choose([1.0] * 32, range(4, 30))
    assert found is not None and len(found) == 28 and found[:4] == (0, 1, 2, 3)


def test_layers_that_no_period_names_are_refused() -> None:
    raw = tiny_raw_config("jamba", num_hidden_layers=8, attn_layer_period=3, attn_layer_offset=0, num_experts=1)
    config, binding = bind_config(raw)
    with pytest.raises(
        ShapeError,
        match="num_hidden_layers=7 cannot be written for jamba with layers 1 removed: attn_layer_period and "
        "attn_layer_offset can only hold even distances, and the layers that they name would be 0, 2, 5; choose",
    ):
        edit_config(raw, config, binding, {**binding.shape, "num_hidden_layers": 7}, [0, 2, 3, 4, 5, 6, 7])


def test_a_depth_that_no_period_fits_names_the_nearest() -> None:
    raw = tiny_raw_config("jamba", num_hidden_layers=6, attn_layer_period=5, attn_layer_offset=0, num_experts=1)
    binding = bind_config(raw)[1]
    check_pattern(binding, 5, range(0, 6))
    with pytest.raises(
        ShapeError, match="attn_layer_period, attn_layer_offset, expert_.* can only hold even distances"
    ):
        check_pattern(binding, 1, range(2, 5))


def test_lists_are_cut_in_the_files_own_words() -> None:
    raw = {**tiny_raw_config("granitemoehybrid", 1)}
    del raw["layer_types"]
    raw["layers_block_type"] = ["mamba", "attention", "mamba", "attention"]
    config, binding = bind_config(raw)
    edited = edit_config(raw, config, binding, {**binding.shape, "num_hidden_layers": 2}, [1, 2])
    assert edited["layers_block_type"] == ["attention", "mamba"]
    assert parse_config(edited).layer_types == [FULL, STATE]


def test_a_pattern_that_is_a_string_is_cut() -> None:
    raw = tiny_raw_config("nemotron_h", 1)
    raw = {key: value for key, value in raw.items() if key not in ("layer_types", "layers_block_type")}
    raw["hybrid_override_pattern"] = "M*-M"
    config, binding = bind_config(raw)
    edited = edit_config(raw, config, binding, {**binding.shape, "num_hidden_layers": 3}, [0, 1, 2])
    assert edited["hybrid_override_pattern"] == "M*-"
    assert parse_config(edited).layer_types == [STATE, FULL, "mlp"]
    assert edited["num_hidden_layers"] == 3


def test_nested_lists_of_indices_that_count_from_one_are_renumbered() -> None:
    raw = tiny_raw_config("kimi_linear", 1)
    raw = {key: value for key, value in raw.items() if key not in ("layer_types", "mlp_layer_types")}
    raw["linear_attn_config"] = {**raw["linear_attn_config"], "full_attn_layers": [2, 4], "kda_layers": [1, 3]}
    config, binding = bind_config(raw)
    edited = edit_config(raw, config, binding, {**binding.shape, "num_hidden_layers": 3}, [0, 1, 3])
    assert edited["linear_attn_config"]["full_attn_layers"] == [2, 3]
    assert edited["linear_attn_config"]["kda_layers"] == [1]
    assert raw["linear_attn_config"]["full_attn_layers"] == [2, 4]
    assert parse_config(edited).layer_types == [STATE, FULL, FULL]
    bare = {key: value for key, value in tiny_raw_config("kimi_linear").items() if key != "linear_attn_config"}
    config, binding = bind_config(bare)
    edited = edit_config(bare, config, binding, {**binding.shape, "num_hidden_layers": 3}, [0, 1, 3])
    assert "linear_attn_config" not in edited
