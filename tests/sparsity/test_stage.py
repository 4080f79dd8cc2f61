"""A sparse model from the request to its files, card and recovery."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinkConfig, IShrinker, RequestError
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.checkpoint.tensors import overwrite_tensor, read_index, read_tensor
from optimum_ishrink.cli.program import main
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.errors import DataError, ShapeError, SourceError, VerificationError
from optimum_ishrink.report.run import Run
from optimum_ishrink.sparsity.stage import count_zeros
from tests.helpers.tiny import CASES, edit_json, graded, in_full, save_tiny, tiny_config
from tests.helpers.tiny_composites import composite_config, save_composite
from tests.helpers.torchrun import torchrun

HOW: dict[str, Any] = {
    "calibration_samples": 8,
    "calibration_length": 16,
    "evaluate": False,
    "benchmark": False,
}
KINDS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def shrink(folder: Path, output: Path, text: Path, **options: Any) -> Any:
    shrinker = IShrinker.from_pretrained(folder, dtype=options.pop("dtype", "float32"), device="cpu")
    return shrinker.shrink(calibration=str(text), save_directory=output, **{**HOW, **options})


def layer_matrices(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if ".layers." in name and "_proj" in name
    }


@pytest.mark.parametrize("criterion", ["sparsegpt", "wanda", "magnitude"])
def test_two_of_four_with_no_other_change(llama_folder: Path, text_file: Path, tmp_path: Path, criterion: str) -> None:
    result = shrink(llama_folder, tmp_path / "out", text_file, sparsity="2:4", sparsity_criterion=criterion)
    base, new = load_file(llama_folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    sparse = layer_matrices(tmp_path / "out")
    for name, tensor in new.items():
        if name not in sparse:
            assert torch.equal(tensor, base[name]), name
            continue
        assert ((tensor == 0).unflatten(-1, (-1, 4)).sum(-1) == 2).all(), name
        if criterion != "sparsegpt":
            assert torch.equal(tensor, base[name].where(tensor != 0, 0)), name
    planned, record = result.plan.sparsity, result.report.sparsity
    assert (planned.pattern, planned.criterion, list(planned.matrices)) == ("2:4", criterion, KINDS)
    assert [kind.name for kind in record.kinds] == KINDS
    assert 2 * record.zeros == record.weights == sum(tensor.numel() for tensor in sparse.values())
    assert all((kind.error is not None) == (criterion == "sparsegpt") for kind in record.kinds)
    assert (result.plan.choice.calibration is None) == (criterion == "magnitude")
    assert result.plan.new_num_parameters == result.plan.num_parameters
    assert Run.read(tmp_path / "out") == Run(result.plan, result.report)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"2:4, chosen by **{criterion}**" in card
    assert "the files are as large as without zeros" in card
    assert "removed by structured pruning" not in card
    assert "- pruning\n- sparsity\n- optimum-ishrink\n" in card
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (llama_folder, tmp_path / "out")]
    assert abs(sizes[0] - sizes[1]) < 1024
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_parameter("model.layers.0.mlp.up_proj.weight").count_nonzero() == 24 * 16


def test_the_same_request_gives_the_same_file(llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        shrink(llama_folder, tmp_path / name, text_file, sparsity="50%")
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_after_a_cut_and_its_repair(llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 16}
    result = shrink(llama_folder, tmp_path / "out", text_file, sparsity="4:8", **shape)
    assert result.report.compensation.repairs
    assert result.plan.new_shape["intermediate_size"] == 16
    sparse = layer_matrices(tmp_path / "out")
    assert len(sparse) == 3 * 7
    for tensor in sparse.values():
        assert ((tensor == 0).unflatten(-1, (-1, 8)).sum(-1) == 4).all()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- pruning\n- structured-pruning\n- sparsity\n" in card
    assert "removed by structured pruning and zeros in the matrices of its layers (4:8)" in card


def test_zeros_and_no_others_survive_bfloat16(text_file: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "half", tiny_config("llama", dtype="bfloat16"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    # A run in another dtype than that of the files does not round what stays.
    shrink(folder, tmp_path / "out", text_file, sparsity="2:4", sparsity_criterion="wanda", dtype="float32")
    base = layer_matrices(folder)
    for name, tensor in layer_matrices(tmp_path / "out").items():
        assert tensor.dtype == torch.bfloat16
        assert ((tensor == 0).unflatten(-1, (-1, 4)).sum(-1) == 2).all(), name
        assert torch.equal(tensor, base[name].where(tensor != 0, 0)), name
    whole = save_tiny(tmp_path / "whole", tiny_config("llama"))
    shrink(whole, tmp_path / "rounded", text_file, sparsity="2:4", sparsity_criterion="wanda", dtype="bfloat16")
    base = layer_matrices(whole)
    for name, tensor in layer_matrices(tmp_path / "rounded").items():
        assert torch.equal(tensor, base[name].where(tensor != 0, 0)), name


def test_a_mixture_of_experts_stored_one_by_one(text_file: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "mixture", tiny_config("mixtral"))
    result = shrink(folder, tmp_path / "out", text_file, sparsity="2:4", calibration_samples=32)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    experts = {name: tensor for name, tensor in stored.items() if ".experts." in name}
    assert len(experts) == 4 * 4 * 3
    for tensor in experts.values():
        assert ((tensor == 0).unflatten(-1, (-1, 4)).sum(-1) == 2).all()
    base = load_file(folder / "model.safetensors")
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    assert torch.equal(stored[gate], base[gate])
    counts = {kind.name: kind.count for kind in result.report.sparsity.kinds}
    assert counts["mlp.experts.gate_up_proj"] == 2 * counts["mlp.experts.down_proj"] == 32
    assert result.plan.sparsity.skipped["block_sparse_moe.gate"] == "it is a router"
    with pytest.raises(DataError, match=r"expert \d of .* reads no token of the calibration text"):
        shrink(folder, tmp_path / "little", text_file, sparsity="2:4", calibration_samples=1, calibration_length=2)
    assert not (tmp_path / "little").exists()


@pytest.mark.parametrize(("model_type", "variant"), [graded(*case, fast=False) for case in CASES if not case[1]])
def test_every_architecture_gets_zeros_or_says_why_not(
    model_type: str, variant: int, text_file: Path, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type, variant))
    how = {"sparsity": "50%", "calibration_samples": 64, "calibration_length": 24}
    try:
        result = shrink(folder, tmp_path / "out", text_file, **how)
    except RequestError as error:
        assert str(error).endswith("use --sparsity-criterion magnitude")
        result = shrink(folder, tmp_path / "out", text_file, sparsity_criterion="magnitude", **how)
    kinds = result.report.sparsity.kinds
    assert {kind.name for kind in kinds} == {*result.plan.sparsity.matrices}
    assert all(kind.error is None or 0 < kind.error < 0.2 for kind in kinds)


def test_with_a_smaller_vocabulary(llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    request = {"vocab_size": 280, "vocab_multiple": 1, "vocab_languages": "none", "sparsity": "50%"}
    result = shrink(llama_folder, tmp_path / "out", text_file, **request)
    assert result.plan.new_shape["vocab_size"] == 280
    share = result.report.sparsity.zeros / result.report.sparsity.weights
    assert share == 0.5


def test_the_plan_says_it_before(llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(llama_folder), "--sparsity", "2:4", "--sparsity-criterion", "magnitude"]) == 0
    printed = capsys.readouterr().out
    assert "Zeros by magnitude" in printed
    assert "mlp.down_proj" in printed
    assert main(["plan", "--model", str(llama_folder), "--sparsity", "2:4", "--shape-only"]) == 0


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "50%"])
def test_a_recipe_needs_no_quotes(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"model: org/m\nsparsity: {pattern}\nseed: 3\n")
    config = IShrinkConfig.from_yaml(tmp_path / "r.yaml")
    assert (config.sparsity, config.seed) == (pattern, 3)
    assert IShrinkConfig.from_dict(config.to_dict()) == config


def test_bad_requests(llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unknown sparsity '3:4'; it can be 2:4, 4:8, or a share such as 50%"):
        IShrinkConfig(sparsity="3:4")
    with pytest.raises(RequestError, match="sparsity_criterion='wanda' chooses zeros, and none were requested"):
        IShrinkConfig(sparsity_criterion="wanda")
    odd = save_tiny(tmp_path / "odd", tiny_config("llama", intermediate_size=22))
    with pytest.raises(ShapeError, match="rows that are multiples of 4, and those of mlp.down_proj have 22 weights"):
        shrink(odd, tmp_path / "out", text_file, sparsity="2:4")
    # The width after the cut is what counts.
    shrink(odd, tmp_path / "cut", text_file, sparsity="2:4", intermediate_size=20, intermediate_multiple=1)
    joined = save_tiny(tmp_path / "joined", tiny_config("gemma3n_text"))
    with pytest.raises(RequestError, match="sparsity by sparsegpt runs the layers of a model one by one.*magnitude"):
        shrink(joined, tmp_path / "out", text_file, sparsity="50%")
    edit_json(odd / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(SourceError, match="the model is already quantised"):
        shrink(odd, tmp_path / "out", text_file, sparsity="2:4")
    assert not (tmp_path / "out").exists()


def test_files_that_lost_their_zeros(llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    for text in ("2:4", "50%"):
        output = tmp_path / text[0]
        result = shrink(llama_folder, output, text_file, sparsity=text, sparsity_criterion="magnitude")
        planned = result.plan.sparsity
        for name, info in read_index(output).items():
            if "mlp" in name:
                overwrite_tensor(info, torch.ones(info.shape))
        with pytest.raises(VerificationError, match=r"has fewer zeros than 2:4|weights are zero, and 50% were to be"):
            count_zeros(planned, output, {})


def recovery(folder: Path, output: Path, teacher: Path, text: Path, *more: str) -> list[str]:
    words = f"""recover --model {folder} --output {output} --teacher {teacher} --recovery-data {text}
        --recovery-tokens 700 --recovery-length 16 --recovery-learning-rate 0.01 --recovery-save-steps 2
        --recovery-batch-size 4 --batch-size 4 --no-evaluate --no-benchmark --dtype float32 --device cpu"""
    return [*words.split(), *more]


def test_recovery_keeps_every_zero(
    llama_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse = tmp_path / "sparse"
    shrink(llama_folder, sparse, text_file, sparsity="2:4", sparsity_criterion="magnitude")
    words = recovery(sparse, tmp_path / "out", llama_folder, text_file)
    assert main([*words, "--recovery-train", "full"]) == 0
    report = read_json(tmp_path / "out" / "ishrink_report.json")
    assert report["recovery"]["helped"]
    before, after = layer_matrices(sparse), layer_matrices(tmp_path / "out")
    for name, tensor in after.items():
        assert torch.equal(tensor == 0, before[name] == 0), name
        assert not torch.equal(tensor, before[name]), name
    assert report["sparsity"]["pattern"] == "2:4"
    assert json.loads((tmp_path / "out" / "ishrink_plan.json").read_text())["sparsity"]["pattern"] == "2:4"
    capsys.readouterr()
    assert main(recovery(sparse, tmp_path / "no", llama_folder, text_file)) == 2
    assert "recovery_train='lora' adds a matrix without zeros" in capsys.readouterr().err
    more = ["--recovery-train", "full", "--recovery-compensation", "ridge"]
    assert main([*recovery(sparse, tmp_path / "no", llama_folder, text_file), *more]) == 2
    assert "solves for all weights of a projection, so that the sparse model" in capsys.readouterr().err
    more = ["--recovery-train", "full", "--recovery-for", "int8"]
    assert main([*recovery(sparse, tmp_path / "no", llama_folder, text_file), *more]) == 2
    assert "recovery_for='int8' rounds weights, zeros too" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_two_processes_keep_the_zeros_of_one(llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    shrink(llama_folder, sparse, text_file, sparsity="2:4", sparsity_criterion="magnitude")
    more = ["--recovery-train", "full", "--recovery-ema", "0.9", "--recovery-layer-decay", "0.9", "--recovery", "jsd"]
    assert main(recovery(sparse, tmp_path / "one", llama_folder, text_file, *more)) == 0
    words = recovery(sparse, tmp_path / "two", llama_folder, text_file, *more)
    done = subprocess.run([*torchrun(), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, one, two = (layer_matrices(folder) for folder in (sparse, tmp_path / "one", tmp_path / "two"))
    for name, tensor in two.items():
        assert torch.equal(tensor == 0, before[name] == 0), name
        torch.testing.assert_close(tensor, one[name], atol=2e-3, rtol=1e-2)


def test_a_shrink_with_zeros_and_recovery(llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    how = {"sparsity": "50%", "recovery": "kl", "recovery_data": str(text_file), "recovery_tokens": 500}
    how |= {"recovery_length": 16, "recovery_batch_size": 4, "recovery_learning_rate": 0.0005}
    with pytest.raises(RequestError, match="train with recovery_train='full', or parts such as"):
        shrink(llama_folder, tmp_path / "no", text_file, **how)
    result = shrink(llama_folder, tmp_path / "out", text_file, recovery_train="norms+last:2", **how)
    assert result.report.recovery.helped
    assert result.report.sparsity.zeros == result.report.sparsity.weights / 2


@pytest.mark.parametrize("model_type", in_full(["gemma3", "llava", "qwen3_vl"], "gemma3"))
def test_the_decoder_of_a_vision_language_model(model_type: str, text_file: Path, tmp_path: Path) -> None:
    folder = save_composite(tmp_path / "base", composite_config(model_type))
    result = shrink(folder, tmp_path / "out", text_file, sparsity="50%")
    before, after = (open_source(each).tensors for each in (folder, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(read_tensor(before[name]), read_tensor(after[name]))}
    assert all(".layers." in name and ("language_model" in name or "text_model" in name) for name in changed)
    assert len(changed) == sum(kind.count for kind in result.report.sparsity.kinds)
    assert result.report.sparsity.zeros / result.report.sparsity.weights == pytest.approx(0.5, abs=0.02)
