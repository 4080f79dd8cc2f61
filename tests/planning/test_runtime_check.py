"""Plans for llama.cpp: what it cannot run is refused, and a target is met by a shape that it can."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.checkpoint.source import source_of_config
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.runtime_check import RuntimeCheck
from optimum_ishrink.planning.shape import complete_shape, resolve_shape
from optimum_ishrink.planning.stage import plan as make_plan
from optimum_ishrink.report.plan import Choice
from tests.helpers.tiny import tiny_raw_config

WIDE = {"hidden_size": 64, "intermediate_size": 96}
FOR = {"for_runtime": "llama.cpp", "intermediate_multiple": 8}
UNPROTECTED = {"keep_first_layers": 0, "keep_last_layers": 0}


def _binding(model_type: str, **changes: Any) -> Any:
    return bind_config(tiny_raw_config(model_type, **{**WIDE, **changes}))[1]


@pytest.mark.parametrize("model_type", ["qwen2", "granite", "nemotron", "cohere", "starcoder2", "phi3"])
def test_fewer_heads_are_refused_where_their_size_comes_from_the_width(model_type: str) -> None:
    binding = _binding(model_type, head_dim=8)
    assert resolve_shape(binding, ShapeOptions(num_key_value_heads=2))["num_attention_heads"] == 4
    with pytest.raises(
        ShapeError, match=r"llama\.cpp takes the size of a head .*num_attention_heads has to be 8, not 4"
    ):
        resolve_shape(binding, ShapeOptions(num_key_value_heads=2, **FOR))
    merged = ShapeOptions(num_key_value_heads=2, merge_key_value_heads=True, **FOR)
    assert resolve_shape(binding, merged)["num_attention_heads"] == 8


def test_fewer_heads_are_planned_where_the_file_holds_their_size() -> None:
    for model_type in ("llama", "mistral", "qwen3", "gemma"):
        shape = resolve_shape(_binding(model_type), ShapeOptions(num_key_value_heads=2, **FOR))
        assert shape["num_attention_heads"] == 4


def test_a_target_is_met_by_what_llama_cpp_runs() -> None:
    binding = _binding("qwen2", head_dim=8, num_hidden_layers=8, layer_types=None)
    heads = {"num_hidden_layers": 8, "intermediate_size": 96, "target": "params=-8.7%"}
    assert resolve_shape(binding, ShapeOptions(**heads))["num_attention_heads"] == 6
    with pytest.raises(
        ShapeError, match="no shape lies within .*; others are ruled out, .* num_attention_heads has to be 8"
    ):
        resolve_shape(binding, ShapeOptions(**heads, **FOR))
    for percent in (8.6, 17.2):
        shape = resolve_shape(binding, ShapeOptions(target=f"params=-{percent}%", **FOR))
        assert (shape["num_attention_heads"], shape["num_key_value_heads"]) == (8, 4)
    with pytest.raises(ShapeError, match="num_attention_heads has to be 8, not .*; leave out for_runtime"):
        resolve_shape(binding, ShapeOptions(target="params=-12%", prune=("num_key_value_heads",), **FOR))


@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        ("helium", {"head_dim": 8}, "llama.cpp's converter does not take helium"),
        ("mistral", {"sliding_window": 100}, "llama.cpp does not apply sliding_window=100"),
        ("qwen2_moe", {"decoder_sparse_step": 2}, "runs qwen2_moe with decoder_sparse_step=1 alone"),
        ("smollm3", {"no_rope_layers": [1, 0, 0, 1]}, "no_rope_layers"),
    ],
)
def test_models_of_which_llama_cpp_runs_no_cut(model_type: str, changes: dict[str, Any], words: str) -> None:
    shape = {"num_hidden_layers": 3, **UNPROTECTED}
    if model_type == "smollm3":
        changes = {**changes, "use_sliding_window": False, "sliding_window": None, "layer_types": None}
    if model_type == "qwen2_moe":
        changes = {**changes, "mlp_only_layers": []}
    binding = _binding(model_type, **changes)
    assert resolve_shape(binding, ShapeOptions(**shape))
    with pytest.raises(ShapeError, match=words):
        resolve_shape(binding, ShapeOptions(**shape, **FOR))


def test_layers_that_no_choice_leaves_in_order_are_refused_before_anything_is_scored() -> None:
    binding = _binding("gemma2", num_hidden_layers=6, layer_types=None)
    protected = {"keep_first_layers": 1, "keep_last_layers": 1}
    with pytest.raises(ShapeError, match="layer_types: llama.cpp lets every second layer of gemma2 see all tokens"):
        resolve_shape(binding, ShapeOptions(num_hidden_layers=5, **protected, **FOR))
    for shape in ({"num_hidden_layers": 5, **UNPROTECTED}, {"num_hidden_layers": 4, **protected}):
        assert resolve_shape(binding, ShapeOptions(**shape, **FOR))


def test_the_highest_scored_layers_that_are_in_order_are_retained() -> None:
    source = source_of_config(tiny_raw_config("gemma2", num_hidden_layers=6, layer_types=None))
    options = ShapeOptions(num_hidden_layers=4, **UNPROTECTED, for_runtime="llama.cpp")
    shape = complete_shape(source.binding, {"num_hidden_layers": 4})
    scores = {"num_hidden_layers": torch.tensor([1.0, 0, 3, 1, 0, 1])}
    # Without layers 1 and 4, the lowest scored ones, layers with and without a window would not take turns.
    assert make_plan(source, options.replace(for_runtime=None), shape, scores, Choice()).layers == (0, 2, 3, 5)
    assert make_plan(source, options, shape, scores, Choice()).layers == (2, 3, 4, 5)


def test_layers_that_were_chosen_have_to_be_in_order() -> None:
    source = source_of_config(tiny_raw_config("gemma2", num_hidden_layers=6, layer_types=None))
    options = ShapeOptions(num_hidden_layers=4, **UNPROTECTED, for_runtime="llama.cpp")
    shape = complete_shape(source.binding, {"num_hidden_layers": 4})
    with pytest.raises(ShapeError, match="layer_types: .*layer 1 of this model is .*, with layers 1, 4 removed"):
        make_plan(source, options, shape, {}, Choice(), layers=(0, 2, 3, 5))


def test_layers_that_go_without_rotary_positions_are_chosen_in_order() -> None:
    binding = _binding(
        "smollm3",
        num_hidden_layers=8,
        no_rope_layers=[1, 1, 1, 0] * 2,
        use_sliding_window=False,
        sliding_window=None,
        layer_types=None,
    )
    order = RuntimeCheck(binding, "llama.cpp").order({"num_hidden_layers": 6})
    assert order is not None
    assert order.choose([1.0] * 8, range(8)) == (0, 1, 2, 3, 5, 6)
    assert RuntimeCheck(binding, None).order({"num_hidden_layers": 6}) is None
    assert RuntimeCheck(_binding("llama"), "llama.cpp").order({"num_hidden_layers": 3}) is None


def test_a_class_change_is_checked_as_what_it_is_written_as() -> None:
    binding = _binding("llama", num_attention_heads=8, num_key_value_heads=8, head_dim=8)
    shape = ShapeOptions(num_key_value_heads=3, allow_class_change=True, **FOR)
    assert resolve_shape(binding, shape)["num_attention_heads"] == 3
    assert RuntimeCheck(binding, None).refusal({"num_hidden_layers": 1}) is None
