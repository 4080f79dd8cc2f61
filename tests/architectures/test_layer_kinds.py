"""Dense layers between layers with experts stay what they are when others are removed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.architectures import config_edit
from optimum_ishrink.architectures.config_edit import edit_config
from optimum_ishrink.architectures.layer_kinds import dense_layer_changes, mixes_kinds
from optimum_ishrink.architectures.model_class import bind_config, expected_tensors, parse_config
from optimum_ishrink.checkpoint.source import Source, source_of_config
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.stage import check_shape
from tests.helpers.tiny import tiny_raw_config


def _dense(config: Any) -> list[bool]:
    """Which layers the config classes of Qwen make dense."""
    step, named = config["decoder_sparse_step"], config["mlp_only_layers"]
    return [layer in named or (layer + 1) % step > 0 for layer in range(config["num_hidden_layers"])]


@given(st.data())
def test_retained_layers_are_as_dense_as_they_were(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 9))
    step = data.draw(st.integers(1, count + 2))
    named = data.draw(st.lists(st.integers(0, count - 1), unique=True))
    layers = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    before = {"decoder_sparse_step": step, "mlp_only_layers": named, "num_hidden_layers": count}
    renumbered = [new for new, old in enumerate(layers) if old in named]
    after = {**before, "mlp_only_layers": renumbered, "num_hidden_layers": len(layers)}
    after |= dense_layer_changes(SimpleNamespace(**before), layers)
    assert _dense(after) == [_dense(before)[layer] for layer in layers]


@given(st.integers(0, 8), st.sets(st.integers(0, 6), min_size=1))
def test_leading_dense_layers_are_counted(first: int, layers: set[int]) -> None:
    retained = sorted(layers)
    config = SimpleNamespace(first_k_dense_replace=first, num_hidden_layers=7)
    count = dense_layer_changes(config, retained).get("first_k_dense_replace", first)
    assert [new < count for new in range(len(retained))] == [old < first for old in retained]


@pytest.mark.parametrize("model_type", ["qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("layers", [(0, 2, 3), (1, 2, 3), (0, 1, 2), (1, 3), (0, 2)])
def test_every_layer_keeps_its_tensors(model_type: str, layers: tuple[int, ...]) -> None:
    raw = tiny_raw_config(model_type, decoder_sparse_step=2, mlp_only_layers=[])
    config, binding = bind_config(raw)
    assert mixes_kinds(binding)
    edited = edit_config(raw, config, binding, {**binding.shape, "num_hidden_layers": len(layers)}, layers)
    wanted = {bound.name for bound in binding.tensors.values() if bound.layer is None}
    for position, layer in enumerate(layers):
        wanted |= {bound.in_layer(position) for bound in binding.layer_tensors(layer)}
    assert expected_tensors(parse_config(edited)).keys() == wanted


def test_keys_that_hold_for_the_new_depth_are_left_alone() -> None:
    raw = tiny_raw_config("qwen3_moe", decoder_sparse_step=2, mlp_only_layers=[], num_hidden_layers=6)
    config, binding = bind_config(raw)
    edited = edit_config(raw, config, binding, {**binding.shape, "num_hidden_layers": 4}, range(4))
    assert (edited["decoder_sparse_step"], edited["mlp_only_layers"]) == (2, [])
    llama = bind_config(tiny_raw_config())[1]
    assert not mixes_kinds(llama)


def test_a_pattern_that_no_key_can_hold_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a family with a key that is not known here."""
    monkeypatch.setattr(config_edit, "dense_layer_changes", lambda config, layers: {})
    raw = tiny_raw_config("qwen3_moe", decoder_sparse_step=2, mlp_only_layers=[])
    source: Source = source_of_config(raw)
    request = ShapeOptions(num_hidden_layers=3, keep_first_layers=0, keep_last_layers=0)
    with pytest.raises(ShapeError, match=r"num_hidden_layers=3 cannot be written for qwen3_moe: decoder_sparse_step"):
        check_shape(source, request)
