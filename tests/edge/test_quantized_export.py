"""Quantised checkpoints: what is written, what a plain reader makes of it, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.cli.run import main
from optimum_ishrink.edge import quantize, schemes
from optimum_ishrink.edge import quantized_export as checkpoint
from optimum_ishrink.edge.agreement import AgreementSettings, measure_checkpoints
from optimum_ishrink.edge.linears import chosen_layers, linear_layers
from optimum_ishrink.edge.quantize import int4_scales, read_quantized
from optimum_ishrink.edge.schemes import SCHEMES
from optimum_ishrink.errors import RequestError, VerificationError
from tests.helpers.edge_models import byte_tokenizer, save_edge
from tests.helpers.tiny import tiny_config, tiny_model

KEPT = (1, 3)

READER = """
import json, sys, torch
from transformers import AutoModelForCausalLM
found = {}
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.no_grad():
        found[folder] = model(torch.arange(3, 40)[None]).logits[0, -1, :8].tolist()
assert "optimum_ishrink" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def tied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16 with tied embeddings."""
    folder = save_edge(tmp_path_factory.mktemp("tied") / "tiny", tie_word_embeddings=True)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported(tied_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every quantisation of it, two layers kept in 16 bits."""
    pytest.importorskip("torchao", reason="pip install 'optimum-ishrink[edge]'")
    pytest.importorskip("compressed_tensors", reason="pip install 'optimum-ishrink[edge]'")
    place = tmp_path_factory.mktemp("quantised")
    folders = {name: place / name for name in SCHEMES}
    for name, folder in folders.items():
        arguments = [*_export(tied_folder, folder), "--quantization", name, "--keep-layers", "3,1"]
        assert main([*arguments, "--no-verify"]) == 0
    return folders


def _export(model: Path, output: Path) -> list[str]:
    return ["export", "--model", str(model), "--format", "safetensors", "--output", str(output)]


def _fails(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    capsys.readouterr()
    assert main(arguments) == status
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ishrink export: error: ")
    return error


def test_a_plain_reader_in_a_fresh_process(exported: dict[str, Path], tied_folder: Path) -> None:
    folders = [str(folder) for folder in exported.values()]
    done = subprocess.run([sys.executable, "-c", READER, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for folder in folders:
        model = read_quantized(Path(folder), torch.bfloat16)
        with torch.no_grad():
            expected = model(torch.arange(3, 40)[None]).logits[0, -1, :8]
        assert found[folder] == expected.tolist()


def test_only_safetensors_and_what_a_model_needs(exported: dict[str, Path], tied_folder: Path) -> None:
    for folder in exported.values():
        assert {path.name for path in folder.iterdir()} == {path.name for path in tied_folder.iterdir()}
        config = (folder / "config.json").read_text()
        assert str(tied_folder) not in config
        assert "quantization_config" in json.loads(config)
        assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_what_is_quantised_and_what_is_kept(exported: dict[str, Path], tied_folder: Path) -> None:
    before = load_file(tied_folder / "model.safetensors")
    for name, folder in exported.items():
        tensors = load_file(folder / "model.safetensors")
        for key, tensor in before.items():
            layer = int(key.split(".")[2]) if ".layers." in key else None
            if layer is None or layer in KEPT or "norm" in key:
                assert torch.equal(tensors[key], tensor), key
                assert tensor.dtype == torch.bfloat16
                continue
            module = key.removesuffix(".weight")
            if SCHEMES[name].bits == 8:
                scale = tensors[f"{module}._weight_scale"]
                values = tensors[f"{module}._weight_qdata"]
                assert (values.dtype, values.shape, scale.numel()) == (torch.int8, tensor.shape, len(tensor))
                assert ((values * scale - tensor.float()).abs() <= 0.51 * scale).all(), key
            else:
                assert tensors[f"{module}.weight_packed"].nbytes == tensor.numel() // 2
                assert tensors[f"{module}.weight_scale"].shape == (len(tensor), tensor.shape[1] // 32)
        assert "lm_head.weight" not in tensors


def test_int4_weights_are_those_of_the_scales(exported: dict[str, Path], tied_folder: Path) -> None:
    before = load_file(tied_folder / "model.safetensors")
    state = read_quantized(exported["int4"], torch.bfloat16).state_dict()
    for key in ("model.layers.0.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight"):
        scale = int4_scales(before[key], 32).float()[..., None]
        groups = before[key].float().unflatten(-1, (-1, 32))
        expected = ((groups / scale).round().clamp(-8, 7) * scale).flatten(-2)
        # A weight halfway between two steps may go to either, when the division is in 16 bits.
        wrong = (state[key].float() - expected).abs()
        assert (wrong <= 1.01 * scale.expand_as(groups).flatten(-2)).all()
        assert (wrong > 0.02 * scale.expand_as(groups).flatten(-2)).float().mean() < 0.05


def test_the_searched_scale_rounds_no_worse_than_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 128, generator=generator) ** 3
    weight[0] = 0
    groups = weight.unflatten(-1, (-1, 32))

    def error(scale: torch.Tensor) -> torch.Tensor:
        step = scale[..., None]
        return ((groups / step).round().clamp(-8, 7) * step - groups).square().sum(-1)

    found, plain = int4_scales(weight, 32), (groups.abs().amax(-1) / 7.5).clamp(min=1e-30)
    assert found.shape == (16, 4)
    assert (found > 0).all()
    assert (error(found) <= error(plain) * 1.0001 + 1e-12).all()
    assert error(found).sum() < 0.95 * error(plain).sum()
    assert error(found)[0].sum() == 0


def test_the_table_and_the_figures(
    tied_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], exported: dict[str, Path]
) -> None:
    target = tmp_path / "out"
    assert main([*_export(tied_folder, target), "--threads", "1", "--keep-layers", "2"]) == 0
    out = capsys.readouterr().out
    assert "tiny as int8" in out
    assert "embedding, head, norms, all of layer 2: " in out
    assert "KL divergence from the checkpoint" in out
    assert "with torchao installed" in out
    assert main([*_export(tied_folder, target), "--json", "--overwrite", "--quantization", "int4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == (target / "model.safetensors").stat().st_size
    assert found["bytes_16_bit"] == 2 * found["params"]
    assert found["bytes"] < 0.7 * found["bytes_16_bit"]
    assert (found["group_size"], found["kept_layers"], found["library"]) == (32, [], "compressed-tensors")
    assert found["agreement"]["divergence"]["value"] > 0
    assert found["agreement"]["divergence"]["n"] == 4
    int4 = found["agreement"]["divergence"]["value"]
    kept = [*_export(tied_folder, target), "--json", "--overwrite", "--quantization", "int4", "--keep-layers", "0,1,2"]
    assert main(kept) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kept_layers"] == [0, 1, 2]
    assert found["agreement"]["divergence"]["value"] < int4


def test_a_checkpoint_agrees_with_itself(tied_folder: Path) -> None:
    source = open_source(tied_folder)

    def load() -> Any:
        return source.load_model(torch.float32, torch.device("cpu"))

    settings = AgreementSettings(windows=2, length=16, predicted=8)
    kl, top1 = measure_checkpoints(load, load, source.load_tokenizer(), settings)
    assert abs(kl.value) < 1e-6
    assert (top1.value, kl.n, kl.settings["predicted"]) == (1, 2, 8)

    def broken() -> Any:
        model = load()
        model.get_input_embeddings().weight.data.fill_(float("nan"))
        return model

    with pytest.raises(VerificationError, match="are not numbers; nothing was kept"):
        measure_checkpoints(load, broken, source.load_tokenizer(), settings)


def test_routers_stay_and_fused_experts_are_not_counted(
    tmp_path: Path, exported: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config("qwen2_moe", hidden_size=64, moe_intermediate_size=32, shared_expert_intermediate_size=32)
    tiny_model(config).save_pretrained(tmp_path / "moe")
    byte_tokenizer().save_pretrained(tmp_path / "moe")
    source = open_source(tmp_path / "moe")
    chosen = chosen_layers(linear_layers(source.config, source.binding), ())
    assert any("shared_expert.down_proj" in linear.name for linear in chosen)
    assert not any(linear.name.endswith("mlp.gate") or ".experts." in linear.name for linear in chosen)
    assert main([*_export(tmp_path / "moe", tmp_path / "out"), "--no-verify"]) == 0
    assert "norms, routers, experts that are one matrix" in capsys.readouterr().out


def test_a_model_without_linear_layers(tmp_path: Path) -> None:
    tiny_model(tiny_config("gpt2")).save_pretrained(tmp_path)
    source = open_source(tmp_path)
    with pytest.raises(RequestError, match="hold no linear layers of PyTorch's"):
        chosen_layers(linear_layers(source.config, source.binding), ())


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries seem installed: what is tested fails before they are needed."""
    monkeypatch.setattr(checkpoint, "check_library", lambda scheme: None)


@pytest.mark.usefixtures("no_library")
def test_bad_requests(tied_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = _export(tied_folder, tmp_path / "out")
    for extra, words in (
        (["--quantization", "q8_0"], "q8_0 is a quantization of GGUF: pass --format gguf, or choose int4, int8"),
        (["--quantization", "int5"], "unknown quantization 'int5' (did you mean 'int8'?)"),
        (["--quantization", "int8", "--group-size", "32"], "--group-size is for int4"),
        (["--quantization", "int4", "--group-size", "48"], "--group-size must be one of 32, 64, 128, not 48"),
        (["--threads", "0"], "--threads must be 1 or more, not 0"),
        (["--keep-layers", "0,1,2,3"], "every layer would stay in 16 bits"),
        (["--keep-layers", "4"], "the model has no layer 4; its layers are 0 to 3"),
        (["--output", str(tmp_path / "a.gguf")], "a.gguf is named like a file; name a folder"),
        (["--output", str(tied_folder), "--overwrite"], "is the input"),
    ):
        assert words in _fails([*export, *extra], capsys)
    narrow = save_edge(tmp_path / "narrow", intermediate_size=88)
    error = _fails([*_export(narrow, tmp_path / "out"), "--quantization", "int4"], capsys)
    assert "those of model.layers.*.mlp.down_proj.weight have 88 weights" in error
    assert error.endswith(
        "the nearest intermediate_size that does is 64 or 96; shrink to that, or export int8, which takes any width"
    )
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "is a GGUF file" in _fails(_export(tmp_path / "model.gguf", tmp_path / "out"), capsys)
    assert not (tmp_path / "out").exists()


def test_flags_of_the_other_format(tied_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = ["export", "--model", str(tied_folder), "--output", str(tmp_path / "a.gguf")]
    assert _fails([*export, "--keep-layers", "1"], capsys).endswith("--keep-layers belongs to --format safetensors")
    error = _fails([*export, "--quantization", "int8"], capsys)
    assert "int8 is a quantization of safetensors: pass --format safetensors, or choose one of GGUF" in error


def test_without_the_library_there_is_a_line_that_installs_it(
    tied_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export = _export(tied_folder, tmp_path / "out")
    monkeypatch.setattr(schemes.importlib.util, "find_spec", lambda name: None)
    error = _fails([*export, "--quantization", "int4"], capsys)
    assert error.endswith("compressed-tensors, which is not installed: pip install 'optimum-ishrink[edge]'")
    monkeypatch.setattr(schemes.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(schemes, "version", lambda name: "0.9.1")
    error = _fails(export, capsys)
    assert error.endswith("int8 needs torchao 0.18 or newer, not 0.9.1: pip install --upgrade torchao")


@pytest.mark.usefixtures("no_library")
def test_the_library_has_its_own_words(
    tied_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise NotImplementedError("no kernel\nfor this")

    monkeypatch.setattr(quantize, "_with_torchao", refuse)
    error = _fails(_export(tied_folder, tmp_path / "out"), capsys)
    assert "torchao cannot quantise" in error
    assert error.endswith("no kernel for this")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantize, "_with_torchao", full)
    assert "No space left on device" in _fails(_export(tied_folder, tmp_path / "out"), capsys)

    def plain(folder: Path, scheme: Any, dtype: Any, ignored: Any, target: Path) -> None:
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(target)

    monkeypatch.setattr(quantize, "_with_torchao", plain)
    error = _fails(_export(tied_folder, tmp_path / "out"), capsys, 1)
    assert "torchao quantised 0 linear layers where 28 were asked for" in error
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_again_is_not_kept(tied_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"transformers cannot run what was written \(.*; nothing was kept"):
        read_quantized(tmp_path, torch.bfloat16)
    with pytest.raises(VerificationError, match="it is in torch.bfloat16; nothing was kept"):
        read_quantized(tied_folder, torch.float16)


def test_an_export_is_no_input(exported: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, method in (("int8", "torchao"), ("int4", "compressed-tensors")):
        error = _fails(_export(exported[name], tmp_path / "out"), capsys)
        assert f"the model is already quantised ({method})" in error
