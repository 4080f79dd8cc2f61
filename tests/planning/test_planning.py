from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_ishrink.architectures.model_class import bind_config, parse_config
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.planning.config_edit import edit_config
from optimum_ishrink.planning.plan import ShapeRequest, make_plan, resolve_shape
from optimum_ishrink.planning.selection import choose_heads, choose_layers, choose_units, group_similar
from optimum_ishrink.planning.target import default_multiple, parse_target, solve
from tests.helpers.tiny import tiny_config

SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
}


def raw(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    values = {**tiny_config(model_type).to_dict(), "model_type": model_type, **changes}
    return {key: value for key, value in values.items() if value is not None}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("params=-15%", 850), ("params = - 12.5 %", 875), ("params=0.5K", 500), ("params=900", 900), ("PARAMS=1k", None)],
)
def test_targets(text: str, wanted: int | None) -> None:
    if wanted is None:
        with pytest.raises(ShapeError):
            parse_target(text, 1000)
    else:
        assert parse_target(text, 1000).num_parameters == wanted


@pytest.mark.parametrize("text", ["-15%", "params=15%", "size=-15%", "params=", "params=-15", "", "params=1.2.3M"])
def test_targets_of_another_form(text: str) -> None:
    with pytest.raises(ShapeError, match="not of the form"):
        parse_target(text, 1000)


@pytest.mark.parametrize("text", ["params=2K", "params=-100%", "params=0", "params=-0%"])
def test_targets_that_are_no_smaller_model(text: str) -> None:
    with pytest.raises(ShapeError, match="the model has 1,000"):
        parse_target(text, 1000)


@pytest.mark.parametrize(("width", "multiple"), [(14336, 256), (8192, 256), (4864, 128), (1536, 32), (64, 2), (24, 1)])
def test_the_default_multiple_grows_with_the_width(width: int, multiple: int) -> None:
    assert default_multiple(width) == multiple


@settings(max_examples=40, deadline=None)
@given(percent=st.integers(300, 6000).map(lambda hundredths: hundredths / 100), multiple=st.sampled_from([16, 32, 64]))
def test_a_target_is_met_within_half_a_point_or_refused_with_both_sides(percent: float, multiple: int) -> None:
    _, binding = _SMOLLM2
    total = binding.num_parameters()
    target = parse_target(f"params=-{percent:.2f}%", total)
    try:
        shape = solve(binding, target, {}, multiple, 6)
    except ShapeError as error:
        assert str(error).count("parameters, -") == 2
    else:
        assert abs(1 - binding.num_parameters(shape) / total - percent / 100) <= 0.00501
        assert shape["intermediate_size"] % multiple == 0
        assert shape["num_hidden_layers"] >= 6
        assert binding.refusal(shape) is None


_SMOLLM2 = bind_config(SMOLLM2)


def test_a_target_leaves_what_was_given() -> None:
    _, binding = _SMOLLM2
    shape = resolve_shape(binding, ShapeRequest({"num_hidden_layers": 30}, "params=-15%"))
    assert shape == {
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "num_attention_heads": 9,
        "intermediate_size": 1152,
    }


def test_a_target_that_no_shape_meets_names_the_nearest() -> None:
    _, binding = _SMOLLM2
    request = ShapeRequest({"intermediate_size": 1536, "num_key_value_heads": 3}, "params=-11.8%")
    with pytest.raises(
        ShapeError, match=r"num_hidden_layers=26 .*-10\.5.*num_hidden_layers=25 .*-13\.1|=25 .*-13\.1.*=26 .*-10\.5"
    ):
        resolve_shape(binding, request)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ShapeRequest({}), "say what to shrink"),
        (ShapeRequest({"num_hidden_layers": 30}), "nothing would change"),
        (ShapeRequest({"intermediate_size": 1500}), "not a multiple of 32.*use 1472 or 1504"),
        (ShapeRequest({"num_hidden_layers": 5}), "fewer than the 4 first and 2 last layers"),
        (ShapeRequest({"num_hidden_layers": 40}), "nearest num_hidden_layers: 30"),
    ],
)
def test_requests_that_cannot_be_met(request_: ShapeRequest, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        resolve_shape(_SMOLLM2[1], request_)


def test_a_multiple_can_be_given() -> None:
    request = ShapeRequest({"intermediate_size": 1500}, intermediate_multiple=4)
    assert resolve_shape(_SMOLLM2[1], request)["intermediate_size"] == 1500


@given(
    scores=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    count=st.integers(3, 8),
    first=st.integers(0, 2),
    last=st.integers(0, 1),
)
def test_protected_layers_stay_and_the_lowest_go(scores: list[float], count: int, first: int, last: int) -> None:
    values = torch.tensor(scores)
    kept = choose_layers(values, count, first, last)
    assert len(kept) == count
    assert list(kept) == sorted(kept)
    assert {*range(first), *range(8 - last, 8)} <= set(kept)
    gone = set(range(8)) - set(kept)
    free = set(kept) - {*range(first), *range(8 - last, 8)}
    assert all(values[a] <= values[b] for a in gone for b in free)


def test_protection_that_leaves_too_few() -> None:
    with pytest.raises(ShapeError, match="cannot remove 3 of 4 layers: keep_first_layers=1 and keep_last_layers=1"):
        choose_layers(torch.ones(4), 1, 1, 1)


def test_units_are_chosen_within_their_layer() -> None:
    scores = torch.tensor([[1.0, 9.0, 5.0], [100.0, 300.0, 200.0], [0.0, 0.0, 0.0]])
    assert choose_units(scores, (0, 1, 2), 2) == ((1, 2), (1, 2), (0, 1))
    assert choose_units(scores, (1,), 1) == ((1,),)


def plan_of(data: dict[str, Any], shape: dict[str, int], drop: int) -> Any:
    config, binding = bind_config(data)
    layers = torch.ones(binding.sizes["layers"])
    layers[drop] = 0
    return make_plan(
        model="m",
        revision="r",
        raw_config=data,
        config=config,
        binding=binding,
        shape={**binding.shape, **shape},
        request=ShapeRequest(shape, keep_first_layers=0, keep_last_layers=0),
        scores={"num_hidden_layers": layers},
        settings={"seed": 0},
    )


def test_layer_types_are_cut_with_the_layers() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    data = raw("qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=4)
    plan = plan_of(data, {"num_hidden_layers": 3}, drop=0)
    assert plan.layers == (1, 2, 3)
    assert plan.config_changes["layer_types"] == (kinds, kinds[1:])


def test_layer_types_that_the_class_derives_are_written_when_depth_changes_them() -> None:
    data = raw("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2)
    del data["layer_types"]
    plan = plan_of(data, {"num_hidden_layers": 3}, drop=0)
    after = ["full_attention", "sliding_attention", "sliding_attention"]
    assert plan.config_changes["layer_types"] == (None, after)
    data = raw("qwen2")
    data.pop("layer_types")
    assert set(plan_of(data, {"num_hidden_layers": 3}, drop=0).config_changes) == {"num_hidden_layers"}


def test_layer_indices_are_renumbered() -> None:
    import dataclasses

    data = raw("llama", dense_layers=[0, 2, 3])
    config, binding = bind_config(data)
    description = dataclasses.replace(binding.description, layer_indices=("dense_layers",))
    binding = dataclasses.replace(binding, description=description)
    edited = edit_config(data, config, binding, {**binding.shape, "num_hidden_layers": 3}, (1, 2, 3))
    assert edited["dense_layers"] == [1, 2]


def test_a_shape_that_the_config_class_refuses_is_an_error() -> None:
    import dataclasses

    data = raw("llama")
    config, binding = bind_config(data)
    binding = dataclasses.replace(binding, description=dataclasses.replace(binding.description, rules=()))
    with pytest.raises(ShapeError, match="this shape cannot be written: the llama config class refuses"):
        edit_config(data, config, binding, {"num_key_value_heads": 3}, (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ShapeRequest({"num_attention_heads": 6}), "cannot be shared by num_key_value_heads=4 evenly"),
        (ShapeRequest({"num_key_value_heads": 2, "num_attention_heads": 8}), "more than the 2 query heads of each"),
        (ShapeRequest({"intermediate_size": 12}, merge_key_value_heads=True), "merge_key_value_heads needs"),
        (
            ShapeRequest({"num_key_value_heads": 3}, merge_key_value_heads=True),
            "4 KV heads cannot be merged into 3 evenly; num_key_value_heads can be 1 or 2",
        ),
    ],
)
def test_heads_that_cannot_be(request_: ShapeRequest, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        resolve_shape(bind_config(raw())[1], request_)


def test_query_heads_are_chosen_within_their_group() -> None:
    scores = torch.tensor([[1.0, 5.0, 3.0, 2.0, 9.0, 8.0]])
    assert choose_heads(scores, [[[0, 1, 2], [3, 4, 5]]], (0,), 2) == ((1, 2, 4, 5),)
    assert choose_heads(None, [[[3, 4, 5]]], (0,), 3) == ((3, 4, 5),)


def test_experts_keep_neurons_of_their_own() -> None:
    scores = torch.tensor([[1.0, 9.0, 5.0, 8.0, 2.0, 3.0]])
    assert choose_units(scores, (0,), 2, experts=2) == ((1, 2, 3, 5),)


def test_similar_heads_are_grouped() -> None:
    similarity = torch.eye(4)
    for a, b, value in ((0, 3, 0.9), (1, 2, 0.8), (0, 1, 0.5)):
        similarity[a, b] = similarity[b, a] = value
    assert group_similar(similarity, 2) == ((0, 3), (1, 2))
    assert group_similar(similarity, 1) == ((0, 1, 2, 3),)


def test_older_readers_keys_are_left_alone() -> None:
    data = raw("llama", torch_dtype="bfloat16", rope_theta=10000.0)
    data.pop("rope_parameters", None)
    config, binding = bind_config(data)
    edited = edit_config(data, config, binding, {**binding.shape, "num_hidden_layers": 3}, (0, 1, 2))
    assert {key: value for key, value in edited.items() if data.get(key) != value} == {"num_hidden_layers": 3}
    assert parse_config(json.loads(json.dumps(edited))).num_hidden_layers == 3


def test_a_runtime_has_its_multiples() -> None:
    _, binding = bind_config(tiny_config("llama", hidden_size=256, intermediate_size=1536, head_dim=32).to_dict())
    held = {"num_hidden_layers": 4, "num_key_value_heads": 4}

    def solved(width: int) -> int:
        target = f"params={binding.num_parameters({'intermediate_size': width})}"
        return resolve_shape(binding, ShapeRequest(held, target, for_runtime="llama.cpp"))["intermediate_size"]

    assert [solved(width) for width in (1280, 1408, 1024)] == [1280, 1408, 1024]
    near = (
        binding.num_parameters({"intermediate_size": 1280}) + 20_000
    )  # 1,280 is within half a point, 1,288 is nearer
    assert (
        resolve_shape(binding, ShapeRequest(held, f"params={near}", for_runtime="llama.cpp"))["intermediate_size"]
        == 1280
    )
    own = ShapeRequest({"intermediate_size": 1500}, intermediate_multiple=4, for_runtime="llama.cpp")
    assert resolve_shape(binding, own)["intermediate_size"] == 1500
    with pytest.raises(ShapeError, match="not a multiple of 32"):
        resolve_shape(binding, ShapeRequest({"intermediate_size": 1500}, for_runtime="llama.cpp"))


def test_a_multiple_is_not_worth_a_kv_group() -> None:
    values = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
    config = tiny_config("llama", **values, intermediate_size=1536, num_hidden_layers=30, vocab_size=49152)
    _, binding = bind_config({**config.to_dict(), "tie_word_embeddings": True})
    for percent, width in ((10, 1280), (15, 1152), (20, 1024)):
        shape = resolve_shape(binding, ShapeRequest({}, f"params=-{percent}%", for_runtime="llama.cpp"))
        assert (shape["num_hidden_layers"], shape["num_key_value_heads"]) == (30, 3)
        assert shape["intermediate_size"] == width
