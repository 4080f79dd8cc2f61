"""Exports of sources with something in them that an export must not take over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge import gguf_export
from optimum_ishrink.edge.gguf_export import export_gguf
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.edge.quantized_export import export_quantized
from optimum_ishrink.errors import SourceError
from tests.helpers.tiny import edit_json

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def twice(tied_folder: Path, tmp_path: Path) -> Path:
    """A tied checkpoint whose head is stored twice, with `auto_map` and a generation config that cannot be saved."""
    folder = shutil.copytree(tied_folder, tmp_path / "twice")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, HEAD: tensors[EMBEDDING].clone()}, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", auto_map={"AutoConfig": "configuration_x.X"})
    edit_json(folder / "generation_config.json", do_sample=False, temperature=0.6)
    return folder


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_a_quantised_export_is_whole(twice: Path, tmp_path: Path, quantization: str) -> None:
    pytest.importorskip("torchao")
    pytest.importorskip("compressed_tensors")
    options = ExportOptions(format="safetensors", quantization=quantization, verify=False)
    export_quantized(open_source(twice), options, tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert HEAD not in set(file.keys())
    GenerationConfig.from_pretrained(tmp_path / "out").validate(strict=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_stale_head_is_not_exported(twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = load_file(twice / "model.safetensors")
    save_file({**tensors, HEAD: tensors[HEAD] + 1}, twice / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(gguf_export, "check_tools", lambda quantization: None)
    with pytest.raises(SourceError, match="values that differ"):
        export_gguf(open_source(twice), ExportOptions(verify=False, quantization="q8_0"), tmp_path / "out.gguf")
    with pytest.raises(SourceError, match="values that differ"):
        options = ExportOptions(format="safetensors", quantization="int8", verify=False)
        export_quantized(open_source(twice), options, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["twice"]
