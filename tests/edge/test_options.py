from __future__ import annotations

import re
from typing import Any

import pytest

from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.errors import RequestError


def test_defaults_depend_on_the_format() -> None:
    assert ExportOptions().quantization_name == "f16"
    assert ExportOptions(format="safetensors").quantization_name == "int8"
    assert ExportOptions(quantization="q8_0").quantization_name == "q8_0"
    assert ExportOptions(format="safetensors", analysis="x").analysis_share == 0.1
    assert ExportOptions(format="safetensors", analysis="x", keep_share=0.5).analysis_share == 0.5
    assert ExportOptions(format="safetensors", keep_layers="3,0,3").keep_layers == (3, 0)


@pytest.mark.parametrize("name", ["group_size", "keep_layers", "analysis", "keep_share"])
def test_options_of_the_other_format_are_refused(name: str) -> None:
    value: Any = {"group_size": 32, "keep_layers": [1], "analysis": "x", "keep_share": 0.2}[name]
    with pytest.raises(RequestError, match=f"--{name.replace('_', '-')} belongs to --format safetensors"):
        ExportOptions(**{name: value})


def test_a_pre_tokenizer_is_refused_where_no_gguf_is_written() -> None:
    with pytest.raises(RequestError, match="--pre-tokenizer belongs to --format gguf"):
        ExportOptions(format="safetensors", pre_tokenizer="gpt-2")
    assert ExportOptions(pre_tokenizer="gpt-2").pre_tokenizer == "gpt-2"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"group_size": 48}, "group_size must be one of 32, 64, 128, not 48"),
        ({"keep_layers": "a"}, "keep_layers must be whole numbers of at least 0"),
        ({"keep_layers": "-1,2"}, "keep_layers must be whole numbers of at least 0"),
        ({"analysis": "x", "keep_share": 1.0}, "keep_share must be a number above 0 and below 1, not 1.0"),
        ({"analysis": "x", "keep_share": 0.0}, "keep_share must be a number above 0 and below 1, not 0.0"),
        ({"keep_share": 0.5}, "name the analysis with --analysis DIR"),
        ({"threads": 0}, "threads must be a whole number of at least 1, not 0"),
    ],
)
def test_values_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        ExportOptions(format="safetensors", **values)
