"""Edits of config.json: only what a plan changes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from optimum_ishrink.architectures.config_edit import check_edited, edit_config
from optimum_ishrink.architectures.model_class import bind_config, parse_config
from optimum_ishrink.errors import ShapeError
from tests.helpers.tiny import tiny_raw_config


def test_layer_indices_are_renumbered() -> None:
    data = tiny_raw_config("llama", dense_layers=[0, 2, 3])
    config, binding = bind_config(data)
    description = dataclasses.replace(binding.description, layer_indices={"dense_layers": 0})
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


def test_a_description_that_does_not_write_what_it_cuts_is_found_before_the_cut() -> None:
    data = tiny_raw_config("llama")
    config, binding = bind_config(data)
    shape = {**binding.shape, "intermediate_size": 16}
    check_edited(edit_config(data, config, binding, shape, range(4)), binding, shape, range(4))
    neurons = dataclasses.replace(binding.description.dimensions["intermediate_size"], writes={})
    dimensions = {**binding.description.dimensions, "intermediate_size": neurons}
    silent = dataclasses.replace(binding, description=dataclasses.replace(binding.description, dimensions=dimensions))
    with pytest.raises(ShapeError, match=r"down_proj.weight as \[32, 24\], and the cut has \[32, 16\]"):
        check_edited(edit_config(data, config, silent, shape, range(4)), silent, shape, range(4))
    with pytest.raises(ShapeError, match="as none, and the cut has"):
        check_edited({**data, "num_hidden_layers": 3}, binding, binding.shape, range(4))


def test_code_is_not_named() -> None:
    data = tiny_raw_config("llama", auto_map={"AutoConfig": "configuration_x.X"})
    config, binding = bind_config(data)
    assert "auto_map" not in edit_config(data, config, binding, binding.shape, range(4))


def test_parsing_changes_nothing_of_what_it_is_given() -> None:
    data = tiny_raw_config("llama", rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 2.0})
    data.pop("rope_parameters", None)
    before = json.dumps(data)
    parse_config(data)  # the class fills in `rope_theta` and `rope_type`, which olmo refuses in version 4.57
    assert json.dumps(data) == before
