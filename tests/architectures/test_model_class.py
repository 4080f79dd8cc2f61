from __future__ import annotations

from typing import Any

import pytest

from optimum_ishrink.architectures.model_class import parse_config
from optimum_ishrink.errors import ArchitectureError, SourceError
from tests.helpers.tiny import tiny_raw_config


def test_an_unknown_architecture_names_the_supported_ones() -> None:
    with pytest.raises(
        ArchitectureError,
        match="unknown architecture 'bert'; allowed: .*apertus, .*llama, .*ministral, .*mistral, .*qwen2",
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
        parse_config(tiny_raw_config(**changes))


def test_infinity_is_read_as_transformers_writes_it() -> None:
    raw = tiny_raw_config("falcon_h1", time_step_limit=[0.0, {"__float__": "Infinity"}])
    assert parse_config(raw).time_step_limit == (0.0, float("inf"))
    assert raw["time_step_limit"] == [0.0, {"__float__": "Infinity"}]


def test_a_config_without_a_model_type() -> None:
    with pytest.raises(SourceError, match="no model_type"):
        parse_config({})
