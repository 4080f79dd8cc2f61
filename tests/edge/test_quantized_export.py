from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge import quantized_export, write_quantized
from optimum_ishrink.edge.export import export
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.edge.quantized_export import QuantizedExport, export_quantized
from optimum_ishrink.errors import RequestError, SourceError, VerificationError


def _options(**changes: Any) -> ExportOptions:
    return ExportOptions(format="safetensors", **changes)


def test_layers_in_16_bits_make_int4_agree_better(
    tied_folder: Path, tmp_path: Path, quantized_folders: dict[str, Path]
) -> None:
    source, target = open_source(tied_folder), tmp_path / "out"
    found = export(source, _options(quantization="int4", threads=1), target)
    assert isinstance(found, QuantizedExport)
    assert (found.path, found.model, found.has_experts) == (target, "tiny", False)
    data = json.loads(json.dumps(found.to_json()))
    assert list(data) == [
        "output",
        "params",
        "quantized_params",
        "bytes",
        "bytes_16_bit",
        "quantization",
        "group_size",
        "library",
        "kept_layers",
        "agreement",
    ]
    assert data["bytes"] == (target / "model.safetensors").stat().st_size
    assert data["bytes_16_bit"] == 2 * data["params"]
    assert data["bytes"] < 0.7 * data["bytes_16_bit"]
    assert (data["group_size"], data["kept_layers"], data["library"]) == (32, [], "compressed-tensors")
    assert set(data["agreement"]) == {"divergence", "top1"}
    assert data["agreement"]["divergence"]["n"] == 4
    options = _options(quantization="int4", keep_layers=(2, 0, 1), threads=1)
    better = export_quantized(source, options, target, overwrite=True)
    assert better.layers_in_16_bits == (0, 1, 2)
    assert better.quantized_params < found.quantized_params
    assert better.agreement is not None and found.agreement is not None
    assert 0 < better.agreement.divergence.value < found.agreement.divergence.value


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries seem installed: what is tested fails before they are needed."""
    monkeypatch.setattr(quantized_export, "check_library", lambda quantization: None)


@pytest.mark.usefixtures("no_library")
def test_bad_requests(tied_folder: Path, tmp_path: Path) -> None:
    source, output = open_source(tied_folder), tmp_path / "out"
    for changes, target, words in (
        ({"quantization": "q8_0"}, output, "q8_0 is a quantization of GGUF: pass --format gguf"),
        ({"group_size": 32}, output, "--group-size is for int4"),
        ({"keep_layers": (0, 1, 2, 3)}, output, "every layer would stay in 16 bits"),
        ({"keep_layers": (4,)}, output, "the model has no layer 4; its layers are 0 to 3"),
        ({}, tmp_path / "a.gguf", "a.gguf is named like a file; name a folder"),
        ({}, tied_folder, "is the input"),
    ):
        with pytest.raises(RequestError, match=re.escape(words)):
            export_quantized(source, _options(**changes), target, overwrite=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_library")
def test_an_error_has_the_reason_of_the_library(
    tied_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = open_source(tied_folder), tmp_path / "out"

    def refuse(*_: Any) -> None:
        raise NotImplementedError("no kernel\nfor this")

    monkeypatch.setattr(write_quantized, "_with_torchao", refuse)
    with pytest.raises(SourceError, match=r"torchao cannot quantise .*: no kernel for this"):
        export_quantized(source, _options(), output)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_quantized, "_with_torchao", full)
    with pytest.raises(RequestError, match="No space left on device"):
        export_quantized(source, _options(), output)

    def plain(folder: Path, quantization: Any, dtype: Any, ignored: Any, target: Path) -> None:
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(target)

    monkeypatch.setattr(write_quantized, "_with_torchao", plain)
    with pytest.raises(VerificationError, match="torchao quantised 0 linear layers where 28 were requested"):
        export_quantized(source, _options(), output)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_not_an_input(quantized_folders: dict[str, Path], tmp_path: Path) -> None:
    for name, method in (("int8", "torchao"), ("int4", "compressed-tensors")):
        source = open_source(quantized_folders[name])
        with pytest.raises(RequestError, match=re.escape(f"the model is already quantised ({method})")):
            export_quantized(source, _options(), tmp_path / "out")
