from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimum_ishrink.architectures.binding import bind
from optimum_ishrink.architectures.description import Description, describe
from optimum_ishrink.architectures.model_class import bind_config, expected_tensors, parse_config
from optimum_ishrink.architectures.shape_check import check_shape, nearest_expressible
from optimum_ishrink.errors import ShapeError
from tests.helpers.tiny import tiny_raw_config


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            {"num_hidden_layers": 5},
            "num_hidden_layers=5 is not between 1 and the model's 4; nearest num_hidden_layers: 4",
        ),
        ({"intermediate_size": 0}, "intermediate_size=0 is not between 1 and the model's 24"),
        ({"num_key_value_heads": 3}, "multiple of num_attention_heads.*mistral; nearest num_key_value_heads: 2 or 4"),
    ],
)
def test_an_impossible_shape_names_the_nearest(shape: dict[str, int], message: str) -> None:
    _, binding = bind_config(tiny_raw_config())
    with pytest.raises(ShapeError, match=message):
        check_shape(binding, shape)


def test_the_nearest_values_are_on_both_sides() -> None:
    _, binding = bind_config(tiny_raw_config())
    assert nearest_expressible(binding, "num_key_value_heads", 3, {}) == [2, 4]
    _, binding = bind_config(tiny_raw_config("qwen3"))
    assert binding.refusal({"num_key_value_heads": 3}) is None


def test_a_dimension_that_cannot_change_says_why(tmp_path: Path) -> None:
    data = json.loads((Path(describe.__code__.co_filename).parent / "llama.json").read_text())
    data["dimensions"]["intermediate_size"] = {"fixed": "it is computed from hidden_size"}
    (tmp_path / "x.json").write_text(json.dumps(data))
    config = parse_config(tiny_raw_config())
    binding = bind(Description.from_json(tmp_path / "x.json"), config, expected_tensors(config))
    with pytest.raises(ShapeError, match="cannot change for llama: it is computed from hidden_size"):
        check_shape(binding, {"intermediate_size": 8})
