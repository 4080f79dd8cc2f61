from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optimum_ishrink.architectures.model_class import bind_config, expected_tensors, parse_config
from optimum_ishrink.architectures.spec import (
    Description,
    bind,
    check_shape,
    describe,
    descriptions,
    nearest_expressible,
)
from optimum_ishrink.errors import ArchitectureError, ShapeError, SourceError
from tests.helpers.tiny import CASES, supported_shape, tiny_config


def raw(model_type: str = "llama", variant: int = 0, **changes: Any) -> dict[str, Any]:
    values = {**tiny_config(model_type, variant).to_dict(), "model_type": model_type, **changes}
    return {key: value for key, value in values.items() if value is not None}


def test_every_description_has_a_tiny_model_to_prove_it() -> None:
    assert set(descriptions()) == {model_type for model_type, _ in CASES}


@pytest.mark.parametrize(("model_type", "variant"), CASES)
def test_every_parameter_is_accounted_for(model_type: str, variant: int) -> None:
    config, binding = bind_config(raw(model_type, variant))
    assert binding.tensors.keys() == expected_tensors(config).keys()
    assert binding.num_parameters() == sum(_numel(shape) for shape in expected_tensors(config).values())


def _numel(shape: tuple[int, ...]) -> int:
    result = 1
    for length in shape:
        result *= length
    return result


@pytest.mark.parametrize(("model_type", "variant"), CASES)
def test_the_number_of_parameters_at_a_shape_is_that_of_its_model(model_type: str, variant: int) -> None:
    data = raw(model_type, variant)
    _, binding = bind_config(data)
    shape = {"num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 10}
    shape = supported_shape(tiny_config(model_type, variant), shape)
    data.update(binding.config_changes(shape))
    for key in binding.description.per_layer:
        if key in data:
            data[key] = data[key][:3]
    for key in binding.description.layer_indices:
        data[key] = [index for index in data.get(key) or () if index < 3]
    assert binding.num_parameters(shape) == sum(_numel(s) for s in expected_tensors(parse_config(data)).values())


@pytest.mark.parametrize("model_type", sorted(descriptions()))
def test_the_rules_say_what_the_config_class_says(model_type: str) -> None:
    data = raw(model_type)
    _, binding = bind_config(data)
    if binding.description.dimensions["num_key_value_heads"].fixed:
        return  # no number of heads is ever written
    for groups in range(1, 5):
        shape = {"num_key_value_heads": groups}
        try:
            parse_config({**data, **binding.config_changes(shape)})
            refused = False
        except SourceError:
            refused = True
        assert (binding.refusal(shape) is not None) == refused, groups


def test_a_parameter_without_an_entry_is_listed() -> None:
    config = parse_config(raw())
    shapes = {**expected_tensors(config), "model.layers.0.self_attn.gate.weight": (8, 32), "model.extra": (1,)}
    with pytest.raises(
        ArchitectureError, match=r"2 of the model's parameters: model.extra \[1\]; model.layers.0.self"
    ):
        bind(describe("llama"), config, shapes)


def test_a_parameter_of_another_shape_is_listed() -> None:
    config = parse_config(raw())
    shapes = {**expected_tensors(config), "model.norm.weight": (31,)}
    with pytest.raises(ArchitectureError, match=r"model.norm.weight \[31\] \(described as \[32\]\)"):
        bind(describe("llama"), config, shapes)


def test_an_unknown_architecture_names_the_supported_ones() -> None:
    with pytest.raises(
        ArchitectureError, match="unknown architecture 'bert'; allowed: apertus, .*llama, ministral, mistral, .*qwen2"
    ):
        parse_config({"model_type": "bert"})
    with pytest.raises(ArchitectureError, match="did you mean 'llama'"):
        parse_config({"model_type": "lama"})


def test_remote_code_is_never_run() -> None:
    with pytest.raises(ArchitectureError, match="remote code, which is never run"):
        parse_config({"model_type": "my_own", "auto_map": {"AutoConfig": "code.Config"}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantised \(gptq\)"),
        ({"num_hidden_layers": "many"}, "the llama config class refuses"),
        ({"num_attention_heads": 7, "num_key_value_heads": 7}, "not a multiple"),
    ],
)
def test_configs_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        parse_config(raw(**changes))


def test_a_config_without_a_model_type() -> None:
    with pytest.raises(SourceError, match="no model_type"):
        parse_config({})


def test_query_heads_that_do_not_divide() -> None:
    config = parse_config(raw("mistral"))
    shapes = expected_tensors(config)
    config.num_key_value_heads = 3
    with pytest.raises(ArchitectureError, match="8 query heads cannot be shared by 3"):
        bind(describe("mistral"), config, shapes)


def test_a_config_that_lacks_a_size() -> None:
    config = parse_config(raw())
    shapes = expected_tensors(config)
    values = {**config.to_dict(), "head_dim": None, "hidden_size": None}
    with pytest.raises(ArchitectureError, match="lacks a size"):
        bind(describe("llama"), SimpleNamespace(**values), shapes)


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
def test_a_shape_that_cannot_be_names_the_nearest(shape: dict[str, int], message: str) -> None:
    _, binding = bind_config(raw())
    with pytest.raises(ShapeError, match=message):
        check_shape(binding, shape)


def test_the_nearest_values_lie_on_both_sides() -> None:
    _, binding = bind_config(raw())
    assert nearest_expressible(binding, "num_key_value_heads", 3, {}) == [2, 4]
    _, binding = bind_config(raw("qwen3"))
    assert binding.refusal({"num_key_value_heads": 3}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensor": {}}, "unknown entry 'tensor'"),
        ({"dimensions": {}}, "dimensions must be exactly"),
        ({"tensors": {"w": "a+b"}}, "neither a size"),
        ({"sizes": None}, "entry 'sizes' is missing"),
    ],
)
def test_what_is_no_description(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = json.loads((Path(describe.__code__.co_filename).parent / "llama.json").read_text())
    data.update(change)
    (tmp_path / "x.json").write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    with pytest.raises(ArchitectureError, match=message):
        Description.from_json(tmp_path / "x.json")


def test_a_dimension_that_cannot_change_says_why(tmp_path: Path) -> None:
    data = json.loads((Path(describe.__code__.co_filename).parent / "llama.json").read_text())
    data["dimensions"]["intermediate_size"] = {"fixed": "it is computed from hidden_size"}
    (tmp_path / "x.json").write_text(json.dumps(data))
    config = parse_config(raw())
    binding = bind(Description.from_json(tmp_path / "x.json"), config, expected_tensors(config))
    with pytest.raises(ShapeError, match="cannot change for llama: it is computed from hidden_size"):
        check_shape(binding, {"intermediate_size": 8})
