"""Edits of config.json: only what a plan changes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from optimum_ishrink.architectures.config_edit import edit_config
from optimum_ishrink.architectures.model_class import bind_config, parse_config
from optimum_ishrink.errors import ShapeError
from tests.helpers.tiny import tiny_raw_config


def test_layer_indices_are_renumbered() -> None:
    data = tiny_raw_config("llama", dense_layers=[0, 2, 3])
    config, binding = bind_config(data)
    description = dataclasses.replace(binding.description, layer_indices=("dense_layers",))
    binding = dataclasses.replace(binding, description=description)
    edited = edit_config(data, config, binding, {**binding.shape, "num_hidden_layers": 3}, (1, 2, 3))
    assert edited["dense_layers"] == [1, 2]


def test_a_shape_that_the_config_class_refuses_is_an_error() -> None:
    data = tiny_raw_config("llama")
    config, binding = bind_config(data)
    binding = dataclasses.replace(binding, description=dataclasses.replace(binding.description, rules=()))
    with pytest.raises(ShapeError, match="this shape cannot be written: the llama config class refuses"):
        edit_config(data, config, binding, {"num_key_value_heads": 3}, (0, 1, 2, 3))


def test_keys_of_older_versions_are_left_alone() -> None:
    data = tiny_raw_config("llama", torch_dtype="bfloat16", rope_theta=10000.0)
    data.pop("rope_parameters", None)
    config, binding = bind_config(data)
    edited = edit_config(data, config, binding, {**binding.shape, "num_hidden_layers": 3}, (0, 1, 2))
    assert {key: value for key, value in edited.items() if data.get(key) != value} == {"num_hidden_layers": 3}
    assert parse_config(json.loads(json.dumps(edited))).num_hidden_layers == 3
