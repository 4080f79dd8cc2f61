from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge.linear_layers import check_columns, layers_to_quantize, linear_layers
from optimum_ishrink.errors import RequestError, ShapeError
from tests.helpers.tiny import tiny_config


def _linears(model_type: str, **changes: int):
    config, binding = bind_config(tiny_config(model_type, **changes).to_dict())
    return linear_layers(config, binding), binding


def test_routers_stay_and_fused_experts_are_not_counted() -> None:
    linears, _ = _linears("qwen2_moe", hidden_size=64, moe_intermediate_size=32, shared_expert_intermediate_size=32)
    found = layers_to_quantize(linears, ())
    assert any("shared_expert.down_proj" in linear.name for linear in found)
    assert not any(linear.name.endswith("mlp.gate") or ".experts." in linear.name for linear in found)


def test_layers_that_stay_in_16_bits(edge_folder: Path) -> None:
    source = open_source(edge_folder)
    linears = linear_layers(source.config, source.binding)
    assert {linear.layer for linear in layers_to_quantize(linears, (1, 3))} == {0, 2}
    with pytest.raises(RequestError, match="every layer would stay in 16 bits"):
        layers_to_quantize(linears, range(4))


def test_a_model_without_linear_layers() -> None:
    linears, _ = _linears("gpt2")
    with pytest.raises(RequestError, match="have no PyTorch linear layers"):
        layers_to_quantize(linears, ())


def test_groups_divide_every_row() -> None:
    linears, binding = _linears("llama", hidden_size=64, intermediate_size=88)
    found = layers_to_quantize(linears, ())
    check_columns(found, None, binding)
    with pytest.raises(ShapeError) as error:
        check_columns(found, 32, binding)
    assert "those of model.layers.*.mlp.down_proj.weight have 88 weights" in str(error.value)
    assert str(error.value).endswith(
        "the nearest intermediate_size that fits is 64 or 96; shrink to that, or export int8, which takes any width"
    )
