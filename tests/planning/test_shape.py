"""From a request to the complete new shape."""

from __future__ import annotations

import pytest

from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.shape import resolve_shape
from tests.helpers.smollm2 import BINDING
from tests.helpers.tiny import tiny_config, tiny_raw_config


def test_a_target_leaves_given_dimensions() -> None:
    shape = resolve_shape(BINDING, ShapeOptions(num_hidden_layers=30, target="params=-15%"))
    assert shape == {
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "num_attention_heads": 9,
        "intermediate_size": 1152,
        "vocab_size": 49152,
    }


def test_a_target_that_no_shape_meets_names_the_nearest() -> None:
    request = ShapeOptions(intermediate_size=1536, num_key_value_heads=3, target="params=-11.8%")
    with pytest.raises(
        ShapeError, match=r"num_hidden_layers=26 .*-10\.5.*num_hidden_layers=25 .*-13\.1|=25 .*-13\.1.*=26 .*-10\.5"
    ):
        resolve_shape(BINDING, request)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ShapeOptions(), "say what to shrink"),
        (ShapeOptions(num_hidden_layers=30), "nothing would change"),
        (ShapeOptions(intermediate_size=1500), "not a multiple of 32.*use 1472 or 1504"),
        (ShapeOptions(num_hidden_layers=5), "fewer than the 4 first and 2 last layers"),
        (ShapeOptions(num_hidden_layers=40), "nearest num_hidden_layers: 30"),
    ],
)
def test_requests_that_cannot_be_met(request_: ShapeOptions, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        resolve_shape(BINDING, request_)


def test_a_multiple_can_be_given() -> None:
    request = ShapeOptions(intermediate_size=1500, intermediate_multiple=4)
    assert resolve_shape(BINDING, request)["intermediate_size"] == 1500


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ShapeOptions(num_attention_heads=6), "num_attention_heads=6 is not a multiple of num_key_value_heads=4"),
        (ShapeOptions(num_key_value_heads=2, num_attention_heads=8), "more than the 2 query heads of each"),
        (ShapeOptions(intermediate_size=12, merge_key_value_heads=True), "merge_key_value_heads needs"),
        (
            ShapeOptions(num_key_value_heads=3, merge_key_value_heads=True),
            "4 KV heads cannot be merged into 3 evenly; num_key_value_heads can be 1 or 2",
        ),
    ],
)
def test_head_counts_that_cannot_be_met(request_: ShapeOptions, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        resolve_shape(bind_config(tiny_raw_config())[1], request_)


def test_a_runtime_has_its_multiples() -> None:
    _, binding = bind_config(tiny_config("llama", hidden_size=256, intermediate_size=1536, head_dim=32).to_dict())
    fixed = {"num_hidden_layers": 4, "num_key_value_heads": 4}

    def solved(width: int) -> int:
        target = f"params={binding.num_parameters({'intermediate_size': width})}"
        shape = resolve_shape(binding, ShapeOptions(**fixed, target=target, for_runtime="llama.cpp"))
        return shape["intermediate_size"]

    assert [solved(width) for width in (1280, 1408, 1024)] == [1280, 1408, 1024]
    near = binding.num_parameters({"intermediate_size": 1280}) + 20_000  # within half a point; 1,288 is nearer
    shape = resolve_shape(binding, ShapeOptions(**fixed, target=f"params={near}", for_runtime="llama.cpp"))
    assert shape["intermediate_size"] == 1280
    given = ShapeOptions(intermediate_size=1500, intermediate_multiple=4, for_runtime="llama.cpp")
    assert resolve_shape(binding, given)["intermediate_size"] == 1500
    with pytest.raises(ShapeError, match="not a multiple of 32"):
        resolve_shape(binding, ShapeOptions(intermediate_size=1500, for_runtime="llama.cpp"))


def test_a_multiple_is_not_worth_a_kv_group() -> None:
    values = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
    config = tiny_config("llama", **values, intermediate_size=1536, num_hidden_layers=30, vocab_size=49152)
    _, binding = bind_config({**config.to_dict(), "tie_word_embeddings": True})
    for percent, width in ((10, 1280), (15, 1152), (20, 1024)):
        shape = resolve_shape(binding, ShapeOptions(target=f"params=-{percent}%", for_runtime="llama.cpp"))
        assert (shape["num_hidden_layers"], shape["num_key_value_heads"]) == (30, 3)
        assert shape["intermediate_size"] == width


def test_a_request_that_protects_every_layer_is_refused() -> None:
    with pytest.raises(ShapeError, match="num_hidden_layers=29 is fewer than the 20 first and 10 last layers"):
        resolve_shape(BINDING, ShapeOptions(num_hidden_layers=29, keep_first_layers=20, keep_last_layers=10))
    request = ShapeOptions(
        target="params=-15%", keep_first_layers=20, keep_last_layers=10, prune=("num_hidden_layers",)
    )
    with pytest.raises(ShapeError, match="keep_first_layers=20 and keep_last_layers=10 leave none of 30 layers"):
        resolve_shape(BINDING, request)


def test_a_target_changes_only_the_dimensions_to_prune() -> None:
    for key, target in (("num_hidden_layers", "params=-10.5%"), ("intermediate_size", "params=-14.8%")):
        shape = resolve_shape(BINDING, ShapeOptions(target=target, prune=(key,)))
        assert {name for name in shape if shape[name] != BINDING.shape[name]} == {key}
    given_too = ShapeOptions(num_hidden_layers=29, target="params=-15%", prune=("intermediate_size",))
    shape = resolve_shape(BINDING, given_too)
    assert shape["num_hidden_layers"] == 29
    assert shape["num_key_value_heads"] == 3
    with pytest.raises(ShapeError, match="prune names what a target changes, and there is no target; add one"):
        resolve_shape(BINDING, ShapeOptions(num_hidden_layers=29, prune=("intermediate_size",)))
