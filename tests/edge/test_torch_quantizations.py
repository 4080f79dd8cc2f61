from __future__ import annotations

import re

import pytest

from optimum_ishrink.edge import torch_quantizations
from optimum_ishrink.edge.torch_quantizations import (
    TORCH_QUANTIZATIONS,
    check_library,
    parse_torch_quantization,
    resolve_group_size,
)
from optimum_ishrink.errors import RequestError


def test_names() -> None:
    assert parse_torch_quantization("INT8").name == "int8"
    for name, message in (
        ("q8_0", "q8_0 is a quantization of GGUF: pass --format gguf, or choose int4, int8"),
        ("int5", "unknown quantization 'int5' (did you mean 'int8'?)"),
    ):
        with pytest.raises(RequestError, match=re.escape(message)):
            parse_torch_quantization(name)


def test_group_sizes() -> None:
    assert resolve_group_size(TORCH_QUANTIZATIONS["int8"], None) is None
    assert resolve_group_size(TORCH_QUANTIZATIONS["int4"], None) == 32
    assert resolve_group_size(TORCH_QUANTIZATIONS["int4"], 128) == 128
    with pytest.raises(RequestError, match="int8 has a scale for each row; --group-size is for int4"):
        resolve_group_size(TORCH_QUANTIZATIONS["int8"], 32)


def test_a_missing_library_has_a_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_quantizations.importlib.util, "find_spec", lambda name: None)
    message = "compressed-tensors, which is not installed: pip install 'optimum-ishrink[edge]'"
    with pytest.raises(RequestError, match=re.escape(message)):
        check_library(TORCH_QUANTIZATIONS["int4"])
    monkeypatch.setattr(torch_quantizations.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch_quantizations, "version", lambda name: "0.9.1")
    message = "int8 needs torchao 0.18 or newer, not 0.9.1: pip install --upgrade torchao"
    with pytest.raises(RequestError, match=re.escape(message)):
        check_library(TORCH_QUANTIZATIONS["int8"])
