"""How schedules are written, the shapes that their stages have, and plans of two cuts as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from optimum_ishrink import IShrinkConfig, RequestError
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.planning.composition import composed
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.schedule import describe_stages, scheduled_stages
from optimum_ishrink.planning.schedule_names import parse_schedule
from optimum_ishrink.planning.shape import complete_shape
from optimum_ishrink.report.plan import Choice, Plan
from tests.helpers.cutting import cut_to, random_plan
from tests.helpers.tiny import save_tiny, tiny_config, tiny_raw_config


def test_schedules_as_they_are_written() -> None:
    assert parse_schedule("width, recover,depth,recover") == ("width", "recover", "depth", "recover")
    assert parse_schedule("vocabulary,2x(cut,recover)") == ("vocabulary", "cut", "recover", "cut", "recover")
    assert parse_schedule("2x(depth),recover") == ("depth", "depth", "recover")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widht,recover", "unknown stage 'widht'"),
        ("recover,width", "recovers first, and nothing is cut yet; begin with a cut such as width"),
        ("width,recover,recover", "recovers twice in a row; once trains on both shares"),
        ("2x(cut,recover),recover", "recovers twice in a row"),
        ("2x(cut,(recover))", "brackets that do not close or are nested; write 3x"),
        ("3x(cut,recover", "brackets that do not close"),
        ("0x(cut,recover)", "unknown stage ''"),
    ],
)
def test_schedules_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        IShrinkConfig(schedule=text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recovery": "none"}, "recovers, and recovery='none' trains nothing; name a loss"),
        ({"schedule": "width,depth"}, "trains in the stages of the schedule that are called recover.*add one"),
        ({"merge_key_value_heads": True}, "leave out merge_key_value_heads and merge_experts, or schedule"),
        ({"recovery_keep_adapter": "me/x"}, "leave out recovery_keep_adapter or schedule"),
        (
            {"schedule": "width,recover,depth", "recovery_for": "q4_0"},
            "cuts after its last recover; end it with recover",
        ),
    ],
)
def test_what_does_not_go_with_a_schedule(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        IShrinkConfig(**{"schedule": "width,recover,depth,recover", "recovery": "kl", **changes})


def _stages(schedule: str, family: str = "llama", options: ShapeOptions | None = None, **shape: int) -> Any:
    _, binding = bind_config(tiny_raw_config(family))
    whole = complete_shape(binding, shape)
    return scheduled_stages(parse_schedule(schedule), binding, whole, options or ShapeOptions()), whole, binding


def test_each_stage_cuts_what_it_names() -> None:
    stages, whole, binding = _stages("width,recover,depth,recover", intermediate_size=16, num_hidden_layers=2)
    sizes = [(stage.shape["intermediate_size"], stage.shape["num_hidden_layers"]) for stage in stages]
    assert sizes == [(16, 4), (16, 4), (16, 2), (16, 2)] and stages[-1].shape == whole
    words = describe_stages(stages, binding.shape)
    assert words == ["width to intermediate_size=16", "recover", "depth to num_hidden_layers=2", "recover"]
    stages, whole, _ = _stages("depth,cut", intermediate_size=16, num_hidden_layers=2, vocab_size=280)
    assert [stage.shape["vocab_size"] for stage in stages] == [300, 280] and stages[-1].shape == whole


def test_steps_are_equal_and_end_at_the_shape() -> None:
    shape = {"intermediate_size": 8, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 280}
    stages, whole, _ = _stages("2x(cut,recover)", **shape)
    first = dict(stages[0].shape)
    # Three KV groups with their six query heads would not divide the model's width.
    assert (first["intermediate_size"], first["num_hidden_layers"], first["num_key_value_heads"]) == (16, 3, 4)
    assert first["num_attention_heads"] == 8 and first["vocab_size"] == 280
    free, _, _ = _stages("2x(heads)", options=ShapeOptions(allow_class_change=True), num_key_value_heads=2)
    assert [stage.shape["num_attention_heads"] for stage in free] == [6, 4]
    assert stages[-1].shape == whole
    coarse, _, _ = _stages("2x(cut,recover)", options=ShapeOptions(intermediate_multiple=6), intermediate_size=6)
    assert [stage.shape["intermediate_size"] for stage in coarse if not stage.recovers] == [12, 6]


@pytest.mark.parametrize(
    ("schedule", "shape", "message"),
    [
        (
            "depth,width,recover",
            {"intermediate_size": 16},
            "names depth, which the target does not need: .*leave depth",
        ),
        ("width,cut,recover", {"intermediate_size": 16}, "names cut, which the target does not need: all that"),
        (
            "width,recover",
            {"intermediate_size": 16, "num_hidden_layers": 2},
            "reaches num_hidden_layers=4, and the target is num_hidden_layers=2; add depth, or cut",
        ),
        (
            "3x(depth,recover)",
            {"num_hidden_layers": 2},
            "cuts depth in 3 steps, and step . of them would change nothing",
        ),
    ],
)
def test_stages_that_do_not_fit_the_target(schedule: str, shape: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        _stages(schedule, **shape)


@pytest.mark.parametrize(
    ("family", "first", "second"),
    [
        (
            "llama",
            {"intermediate_size": 16, "num_hidden_layers": 3},
            {"num_hidden_layers": 2, "num_key_value_heads": 2},
        ),
        (
            "llama",
            {"num_key_value_heads": 2, "intermediate_size": 16},
            {"num_attention_heads": 2, "intermediate_size": 8},
        ),
        ("qwen2_moe", {"num_experts": 3}, {"intermediate_size": 8}),
        ("qwen2_moe", {"intermediate_size": 12}, {"num_experts": 3}),
        ("qwen3_moe", {"num_experts": 3, "intermediate_size": 12}, {"num_experts": 2, "num_hidden_layers": 2}),
        ("deepseek_v3", {"num_experts": 3, "intermediate_size": 8}, {"intermediate_size": 4, "num_hidden_layers": 3}),
        ("lfm2", {"intermediate_size": 16}, {"num_hidden_layers": 3}),
    ],
)
def test_two_cuts_are_one_by_the_plan_of_both(
    family: str, first: dict[str, int], second: dict[str, int], tmp_path: Path
) -> None:
    base = save_tiny(tmp_path / "base", tiny_config(family))
    raw = read_json(base / "config.json")
    one, _, binding = random_plan(raw, first, 1)
    cut_to(base, tmp_path / "middle", one)
    two, *_ = random_plan(read_json(tmp_path / "middle" / "config.json"), second, 2)
    cut_to(tmp_path / "middle", tmp_path / "twice", two)
    both = composed(one, two, binding, raw, read_json(tmp_path / "twice" / "config.json"))
    assert both.shape == one.shape and both.new_shape == two.new_shape
    assert both.new_num_parameters == two.new_num_parameters and both.num_parameters == one.num_parameters
    assert Plan.from_json(both.to_json()) == both
    cut_to(base, tmp_path / "once", both)
    assert read_json(tmp_path / "once" / "config.json") == read_json(tmp_path / "twice" / "config.json")
    once, twice = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice"))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], tensor) for name, tensor in twice.items())


def test_the_choice_of_both_cuts_is_recorded() -> None:
    plan, _, binding = random_plan(tiny_raw_config(), {"intermediate_size": 16}, 1)
    plan = replace(plan, units={})
    one = replace(plan, choice=Choice(importance="fisher", seed=3))
    two = replace(plan, choice=Choice(layer_importance="block-influence", layer_selection="once", seed=3))
    raw = tiny_raw_config()
    both = composed(one, two, binding, raw, raw).choice
    assert (both.importance, both.layer_importance, both.seed) == ("fisher", "block-influence", 3)
