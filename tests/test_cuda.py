"""On a CUDA device: the same results as on the CPU, from every command. Skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.cli.program import main
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.importance.criterion import LAYER_CRITERIA, UNIT_CRITERIA
from optimum_ishrink.report.analysis import Analysis
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.report.report import Report
from optimum_ishrink.report.run import Run
from optimum_ishrink.report.sparsity import SPARSITY_CRITERIA
from tests.helpers.tiny import VARIANTS, save_tiny, supported_shape, tiny_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

SHAPE = {"num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def quick(text_file: Path, other_text: Path) -> dict[str, Any]:
    return {
        "calibration": [str(text_file)],
        "calibration_samples": 16,
        "calibration_length": 16,
        "eval_text": [str(other_text)],
        "eval_samples": 4,
        "eval_length": 16,
        "benchmark": False,
        "score_cache": False,
        "dtype": "float32",
    }


def shrink(folder: Path, output: Path, device: str, settings: dict[str, Any]) -> tuple[Plan, Report]:
    IShrinker.from_pretrained(folder).shrink(IShrinkConfig(device=device, **settings), save_directory=output)
    plan = Plan.from_json(read_json(output / "ishrink_plan.json"))
    return plan, Report.from_json(read_json(output / "ishrink_report.json"))


def divergence(report: Report) -> float:
    (found,) = (m.value for m in report.shrunk.quality if m.metric == "kl_divergence")
    return found


@pytest.mark.parametrize("model_type", VARIANTS)
def test_every_architecture_is_cut_and_repaired_as_on_the_cpu(
    model_type: str, quick: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(model_type)
    folder = save_tiny(tmp_path / "base", config)
    settings = quick | supported_shape(config, SHAPE)
    if getattr(config, "num_experts_per_tok", None):
        settings["importance"] = "taylor"  # the default does not see into experts
    here, on_cpu = shrink(folder, tmp_path / "cpu", "cpu", settings)
    there, on_cuda = shrink(folder, tmp_path / "cuda", "cuda", settings)
    assert (there.layers, there.units) == (here.layers, here.units)
    assert divergence(on_cuda) == pytest.approx(divergence(on_cpu), rel=1e-2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "cuda", dtype=torch.float32)
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("setting", "name"),
    [*(("importance", name) for name in UNIT_CRITERIA), *(("layer_importance", name) for name in LAYER_CRITERIA)],
)
def test_every_criterion_chooses_as_on_the_cpu(
    setting: str, name: str, llama_folder: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**quick, **SHAPE, setting: name, "compensation": "none", "evaluate": False}
    here, _ = shrink(llama_folder, tmp_path / "cpu", "cpu", settings)
    there, _ = shrink(llama_folder, tmp_path / "cuda", "cuda", settings)
    assert (there.layers, there.units) == (here.layers, here.units)


@pytest.mark.parametrize("criterion", SPARSITY_CRITERIA)
@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_zeros_are_chosen_as_on_the_cpu(
    model_type: str, criterion: str, quick: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type))
    settings = {**quick, "sparsity": "2:4", "sparsity_criterion": criterion, "calibration_samples": 32}
    _, on_cpu = shrink(folder, tmp_path / "cpu", "cpu", settings)
    _, on_cuda = shrink(folder, tmp_path / "cuda", "cuda", settings)
    assert on_cuda.sparsity is not None and on_cpu.sparsity is not None
    assert on_cuda.sparsity.zeros == on_cpu.sparsity.zeros
    assert divergence(on_cuda) == pytest.approx(divergence(on_cpu), rel=5e-2)


def test_the_whole_way_in_bfloat16(
    llama_folder: Path, other_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Own words, the cut, recovery, evaluation, timing and fresh processes: all of it by default on the device."""
    common = ["--eval-text", str(other_text), "--eval-samples", "4", "--eval-length", "16"]
    speed = ["--benchmark-prompt-length", "4", "--benchmark-new-tokens", "2", "--benchmark-rounds", "2"]
    words = ["--num-hidden-layers", "3", "--intermediate-size", "16", "--calibration-samples", "8"]
    words += ["--calibration-length", "16", "--no-score-cache", *common, *speed]
    words += ["--recovery", "kl+hidden:0.1+attention:0.1", "--recovery-tokens", "700", "--recovery-length", "16"]
    words += ["--recovery-save-steps", "4", "--recovery-batch-size", "4", "--recovery-compensation", "ridge"]
    words += ["--recovery-compensation-samples", "16"]
    cut = tmp_path / "cut"
    assert main(["shrink", "--model", str(llama_folder), "--output", str(cut), *words]) == 0
    report = Report.from_json(read_json(cut / "ishrink_report.json"))
    assert report.environment.device.startswith("cuda") and report.environment.dtype == "bfloat16"
    metrics = {m.metric for m in report.shrunk.speed}
    assert {"peak_device_memory_bytes", "decode_tokens_per_second", "load_seconds"} <= metrics
    words = ["--model", str(cut), "--base", str(llama_folder)]
    assert main(["evaluate", *words, *common, "--sample-new-tokens", "4"]) == 0
    capsys.readouterr()
    assert main(["benchmark", *words, *speed, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["environment"]["device"].startswith("cuda")


@pytest.mark.parametrize(
    "loss", ["ce", "kl", "kl+reverse-kl+jsd+skew-kl+skew-reverse-kl", "kl+hidden:0.1+attention:0.1"]
)
@pytest.mark.parametrize(
    "how", [[], ["--recovery-top-k", "8", "--recovery-epochs", "2"], ["--recovery-checkpointing"]]
)
def test_recovery_trains_as_on_the_cpu(
    loss: str, how: list[str], llama_folder: Path, text_file: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    shrink(llama_folder, tmp_path / "cut", "cpu", {**quick, **SHAPE, "evaluate": False})
    losses = {}
    for device in ("cpu", "cuda"):
        words = ["--teacher", str(llama_folder), "--recovery-data", str(text_file), "--recovery-tokens", "700"]
        words += ["--recovery-length", "16", "--recovery-save-steps", "4", "--recovery-batch-size", "4", *how]
        words += ["--recovery-lora-rank", "4", "--no-evaluate", "--no-benchmark", "--dtype", "float32"]
        output = tmp_path / device
        command = ["recover", "--model", str(tmp_path / "cut"), "--output", str(output), "--recovery", loss]
        assert main([*command, *words, "--device", device]) == 0
        recovery = Run.read(output).report.recovery
        assert recovery is not None
        losses[device] = [loss for _, loss in recovery.held_out_losses]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


def test_the_student_samples_on_the_device(
    llama_folder: Path, text_file: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    found = IShrinker.from_pretrained(llama_folder).shrink(
        IShrinkConfig(device="cuda", **{**quick, **SHAPE, "evaluate": False, "dtype": "bfloat16"}),
        recovery="kl",
        recovery_on_policy=0.5,
        recovery_on_policy_steps=2,
        recovery_teacher=f"{llama_folder},{llama_folder}",
        recovery_data=[str(text_file)],
        recovery_tokens=700,
        recovery_length=16,
        recovery_batch_size=4,
        schedule="width,recover,cut,recover",
        save_directory=tmp_path / "out",
    )
    assert found.report.recovery is not None and found.report.recovery.on_policy == 0.5
    assert found.report.stages is not None and len(found.report.stages) == 4


def test_analysis_finds_what_it_finds_on_the_cpu(llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        words = ["--calibration", str(text_file), "--calibration-samples", "4", "--calibration-length", "16"]
        words += ["--output", str(tmp_path / device), "--dtype", "float32", "--device", device]
        assert main(["analyze", "--model", str(llama_folder), *words]) == 0
        found[device] = Analysis.from_json(read_json(tmp_path / device / "analysis.json"))
    for here, there in zip(found["cpu"].sensitivity, found["cuda"].sensitivity, strict=True):
        for part in ("attention", "mlp", "block"):
            expected = getattr(here, part).value
            assert getattr(there, part).value == pytest.approx(expected, rel=1e-2, abs=1e-4)
