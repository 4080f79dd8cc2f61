"""Layers that read the keys and values of an earlier one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.architectures.config_edit import edit_config
from optimum_ishrink.architectures.layer_patterns import LayerPattern
from optimum_ishrink.architectures.model_class import bind_config, parse_config
from optimum_ishrink.architectures.shared_kv import check_required, check_sources, kv_sources
from optimum_ishrink.checkpoint.source import source_of_config
from optimum_ishrink.errors import ShapeError, SourceError
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.runtime_check import RuntimeCheck
from optimum_ishrink.planning.stage import check_shape, shared_scores
from tests.helpers.cutting import random_plan
from tests.helpers.tiny import tiny_raw_config

KINDS = ["near", "far", "near", "far", "near"]


def test_a_layer_reads_the_last_of_its_kind_that_has_its_own() -> None:
    assert kv_sources(2, KINDS) == {3: 1, 4: 2}
    assert kv_sources(0, KINDS) == {}
    with pytest.raises(ValueError, match="layer 3 reads keys and values of a far layer"):
        kv_sources(4, KINDS[:1] + ["near"] * 2 + ["far", "near"])


@given(st.data())
def test_sources_that_change_are_found(data: st.DataObject) -> None:
    kinds = ["near", "far", *data.draw(st.lists(st.sampled_from(["near", "far"]), max_size=6))]
    before = kv_sources(data.draw(st.integers(0, len(kinds) - 2)), kinds)
    layers = sorted(data.draw(st.sets(st.integers(0, len(kinds) - 1), min_size=1)))
    count = sum(layer in before for layer in layers)
    try:
        after = kv_sources(count, [kinds[layer] for layer in layers])
    except ValueError:
        return
    read = {layers.index(layer): before[layer] for layer in layers if layer in before}
    same = read == {new: layers[source] for new, source in after.items()}
    try:
        check_sources(before, after, layers)
        assert same
    except ShapeError:
        assert not same


def test_the_message_names_both_layers() -> None:
    with pytest.raises(ShapeError, match="^layer 3 reads the keys and values of layer 1, which has to be retained"):
        check_sources({3: 1, 4: 2}, {2: 0, 3: 1}, (0, 2, 3, 4))


def test_a_required_layer_that_is_removed_is_named() -> None:
    check_required((0, 3), (0, 2, 3))
    with pytest.raises(ShapeError, match=r"^num_hidden_layers=2 would remove layers 0, 3, .*; keep .* at 3 or more"):
        check_required((0, 3, 4), (2, 4))


def _tied(seed: int, **shape: int) -> tuple[Any, Any]:
    plan, _, binding = random_plan(tiny_raw_config("gemma3n_text"), shape, seed)
    assert binding.kv_sources == {2: 0, 3: 1}
    return plan, binding


@pytest.mark.parametrize("seed", range(5))
def test_layers_that_share_retain_the_same_heads(seed: int) -> None:
    plan, _ = _tied(seed, num_key_value_heads=2)
    units = plan.units["num_key_value_heads"]
    assert (units[2], units[3]) == (units[0], units[1])


def test_scores_of_layers_that_share_are_summed() -> None:
    _, binding = _tied(0)
    scores = torch.arange(16.0).view(4, 4)
    summed = shared_scores(binding, (0, 1, 3), scores)
    torch.testing.assert_close(summed[[1, 3]], (scores[1] + scores[3]).expand(2, 4))
    torch.testing.assert_close(summed[[0, 2]], scores[[0, 2]])
    plain = bind_config(tiny_raw_config())[1]
    assert shared_scores(plain, range(4), scores) is scores


@pytest.mark.parametrize("seed", range(8))
def test_the_layers_that_others_read_stay(seed: int) -> None:
    plan, _, binding = random_plan(tiny_raw_config("gemma4_text"), {"num_hidden_layers": 3}, seed)
    assert binding.kv_sources == {2: 1, 3: 1}
    assert {1, 3} <= set(plan.layers)  # the model class makes the last layer what the last layer is
    shared = sum(layer in binding.kv_sources for layer in plan.layers)
    assert plan.config_changes.get("num_kv_shared_layers", (2, 2)) == (2, shared)


def test_the_config_says_how_many_layers_share() -> None:
    raw = tiny_raw_config("gemma4_text")
    config, binding = bind_config(raw)
    edited = edit_config(raw, config, binding, {**binding.shape, "num_hidden_layers": 3}, (0, 1, 3))
    assert parse_config(edited).kv_sharing_modes == ["store", "store", "reuse"]


def test_a_depth_that_loses_a_required_layer_is_refused_before_the_work() -> None:
    source = source_of_config(tiny_raw_config("gemma4_text", num_kv_shared_layers=2))
    request = ShapeOptions(num_hidden_layers=1, keep_first_layers=0, keep_last_layers=0)
    message = "cannot hold the layers of gemma4_text .*: it needs layer 1 and layer 3; .*: 2;"
    with pytest.raises(ShapeError, match=message):
        check_shape(source, request)
    assert check_shape(source, ShapeOptions(num_hidden_layers=2, keep_first_layers=0, keep_last_layers=0))


def test_the_order_of_layers_names_those_that_are_required() -> None:
    binding = bind_config(tiny_raw_config("gemma4_text"))[1]
    order = RuntimeCheck(binding, None).order({**binding.shape, "num_hidden_layers": 3})
    assert isinstance(order, LayerPattern)
    assert dict(order.needed) == {"layer 1": frozenset({1}), "layer 3": frozenset({3})}
    assert order.choose([1.0, 0.0, 2.0, 0.0], range(4)) == (1, 2, 3)
    assert not order.can_follow((0, 2, 3), range(4))
    assert order.can_follow((0, 1, 2, 3), range(4))
    plain = bind_config(tiny_raw_config())[1]
    assert RuntimeCheck(plain, None).order({**plain.shape, "num_hidden_layers": 3}) is None


def test_a_config_in_which_no_layer_has_what_another_reads() -> None:
    raw = {**tiny_raw_config("gemma3n_text"), "num_kv_shared_layers": 3}
    with pytest.raises(
        SourceError, match="^no gemma3n_text model can be built from this config.json: The set of layer"
    ):
        bind_config(raw)
