"""Plans: what is retained, and what that changes in the config."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimum_ishrink.checkpoint.source import source_of_config
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.shape import complete_shape
from optimum_ishrink.planning.stage import layers_to_remove, plan
from optimum_ishrink.report.plan import Choice, Plan
from tests.helpers.tiny import tiny_raw_config


def plan_without(data: dict[str, Any], layer: int) -> Plan:
    """The plan that removes one layer."""
    source = source_of_config(data)
    total = source.binding.sizes["layers"]
    scores = torch.ones(total)
    scores[layer] = 0
    options = ShapeOptions(num_hidden_layers=total - 1, keep_first_layers=0, keep_last_layers=0)
    shape = complete_shape(source.binding, options.shape)
    return plan(source, options, shape, {"num_hidden_layers": scores}, Choice())


def test_layer_types_are_cut_with_the_layers() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    data = tiny_raw_config("qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=4)
    found = plan_without(data, layer=0)
    assert found.layers == (1, 2, 3)
    assert found.config_changes["layer_types"] == (kinds, kinds[1:])


def test_layer_types_that_the_class_derives_are_written_when_depth_changes_them() -> None:
    data = tiny_raw_config("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2)
    del data["layer_types"]
    after = ["full_attention", "sliding_attention", "sliding_attention"]
    assert plan_without(data, layer=0).config_changes["layer_types"] == (None, after)
    data = tiny_raw_config("qwen2")
    data.pop("layer_types")
    assert set(plan_without(data, layer=0).config_changes) == {"num_hidden_layers"}


def test_a_plan_names_its_source() -> None:
    source = source_of_config(tiny_raw_config())
    options = ShapeOptions(intermediate_size=16)
    shape = complete_shape(source.binding, options.shape)
    scores = {"intermediate_size": torch.rand(4, source.binding.sizes["ffn"])}
    assert plan(source, options, shape, scores, Choice()).model == "tiny"
    assert plan(source, options, shape, scores, Choice(), name="org/base").model == "org/base"


def test_measured_layers_override_the_scores() -> None:
    source = source_of_config(tiny_raw_config())
    options = ShapeOptions(num_hidden_layers=3)
    shape = complete_shape(source.binding, options.shape)
    assert plan(source, options, shape, {}, Choice(), layers=(0, 2, 3)).layers == (0, 2, 3)


def test_layers_to_remove_are_those_that_are_not_protected() -> None:
    source = source_of_config(tiny_raw_config())
    options = ShapeOptions(keep_first_layers=1, keep_last_layers=1)
    assert layers_to_remove(source, options, {"num_hidden_layers": 4}) == range(0)
    assert layers_to_remove(source, options, {"num_hidden_layers": 3}) == range(1, 3)
    with pytest.raises(ShapeError, match="cannot remove 3 of 4 layers"):
        layers_to_remove(source, options, {"num_hidden_layers": 1})
