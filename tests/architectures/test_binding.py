from __future__ import annotations

from types import SimpleNamespace

import pytest

from optimum_ishrink.architectures.binding import bind
from optimum_ishrink.architectures.description import describe, descriptions
from optimum_ishrink.architectures.model_class import bind_config, expected_tensors, parse_config
from optimum_ishrink.errors import ArchitectureError, SourceError
from tests.helpers.tiny import PROOF_CASES, supported_shape, tiny_config, tiny_raw_config


@pytest.mark.parametrize(("model_type", "variant"), PROOF_CASES)
def test_every_parameter_is_accounted_for(model_type: str, variant: int) -> None:
    config, binding = bind_config(tiny_raw_config(model_type, variant))
    assert binding.tensors.keys() == expected_tensors(config).keys()
    assert binding.num_parameters() == sum(_numel(shape) for shape in expected_tensors(config).values())


def _numel(shape: tuple[int, ...]) -> int:
    result = 1
    for length in shape:
        result *= length
    return result


@pytest.mark.parametrize(("model_type", "variant"), PROOF_CASES)
def test_the_number_of_parameters_at_a_shape_is_that_of_its_model(model_type: str, variant: int) -> None:
    data = tiny_raw_config(model_type, variant)
    _, binding = bind_config(data)
    shape = {"num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 10}
    shape = supported_shape(tiny_config(model_type, variant), shape)
    if binding.required_layers:  # the first ones do not make a model
        shape.pop("num_hidden_layers", None)
    data.update(binding.config_changes(shape))
    for key in binding.description.per_layer if "num_hidden_layers" in shape else ():
        if isinstance(data.get(key), list):
            data[key] = data[key][:3]
    for key in binding.description.layer_indices:
        data[key] = [index for index in data.get(key) or () if index < 3]
    assert binding.num_parameters(shape) == sum(_numel(s) for s in expected_tensors(parse_config(data)).values())


@pytest.mark.parametrize("model_type", sorted(descriptions()))
def test_the_rules_agree_with_the_config_class(model_type: str) -> None:
    data = tiny_raw_config(model_type)
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
    config = parse_config(tiny_raw_config())
    shapes = {**expected_tensors(config), "model.layers.0.self_attn.gate.weight": (8, 32), "model.extra": (1,)}
    with pytest.raises(
        ArchitectureError, match=r"2 of the model's parameters: model.extra \[1\]; model.layers.0.self"
    ):
        bind(describe("llama"), config, shapes)


def test_a_parameter_of_a_different_shape_is_listed() -> None:
    config = parse_config(tiny_raw_config())
    shapes = {**expected_tensors(config), "model.norm.weight": (31,)}
    with pytest.raises(ArchitectureError, match=r"model.norm.weight \[31\] \(described as \[32\]\)"):
        bind(describe("llama"), config, shapes)


def test_query_heads_that_do_not_divide() -> None:
    config = parse_config(tiny_raw_config("mistral"))
    shapes = expected_tensors(config)
    config.num_key_value_heads = 3
    with pytest.raises(ArchitectureError, match="8 query heads are not a multiple of 3"):
        bind(describe("mistral"), config, shapes)


def test_a_config_that_lacks_a_size() -> None:
    config = parse_config(tiny_raw_config())
    shapes = expected_tensors(config)
    values = {**config.to_dict(), "head_dim": None, "hidden_size": None}
    with pytest.raises(ArchitectureError, match="lacks a size"):
        bind(describe("llama"), SimpleNamespace(**values), shapes)
