"""Recovery from the command line: what is written, and what is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinker
from optimum_ishrink.cli.program import main
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.recovery import preparation, stage
from optimum_ishrink.recovery.training_text import recovery_text
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.report.report import Report
from optimum_ishrink.report.run import Run
from tests.helpers.beginning import beginning_tokenizer
from tests.helpers.recovery_runs import changed, recover, recovered
from tests.helpers.tiny import in_full, save_tiny, tiny_config

IDS = torch.arange(3, 12)[None]


def test_recover_gives_a_standard_folder_with_measured_facts(
    small: Path, flags: list[str], llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in small.iterdir() if path.is_file()}
    assert recover(small, tmp_path / "out", flags, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {path.name for path in small.iterdir()}
    assert {path.name: path.read_bytes() for path in small.iterdir() if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for name in ("config.json", "tokenizer.json", "ishrink_config.json", "ishrink_importance.safetensors"):
        assert (folder / name).read_bytes() == before[name], name
    run, old = Run.read(folder), Run.read(small)
    plan, report = run.plan, run.report
    assert plan is not None and plan == old.plan == Plan.from_json(printed["plan"])
    assert report.compensation == old.report.compensation
    facts = recovered(folder)
    assert facts["tokens"] == facts["steps"] * 4 * 16 <= 700
    assert facts["held_out_loss"] < facts["held_out_loss_before"]
    assert Report.from_json(printed["report"]) == report
    assert report.base is not None
    # The measurements before recovery are those of the pruned model.
    measuring = flags[flags.index("--eval-text") : flags.index("--no-benchmark")]
    how = ["--model", str(small), "--base", str(llama_folder), *measuring, "--dtype", "float32", "--device", "cpu"]
    assert main(["evaluate", *how, "--json"]) == 0
    measured = {m["metric"]: m["value"] for m in json.loads(capsys.readouterr().out)["shrunk"]["quality"]}
    assert {m["metric"]: m["value"] for m in facts["before"]} == {
        name: measured[name] for name in ("kl_divergence", "top1_agreement")
    }
    card = ModelCard.load(folder / "README.md").text
    assert "## What was recovered" in card
    assert f"{facts['held_out_loss_before']:.4f} to {facts['held_out_loss']:.4f}" in card
    assert "No gradient step" not in card
    assert "ishrink recover --model small" in card
    assert str(tmp_path) not in card
    assert "## What was recovered" not in (small / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == plan.new_num_parameters


def test_shrink_recovers_with_nothing_but_the_model(llama_folder: Path, other_text: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "num_hidden_layers": 3,
        "intermediate_size": 16,
        "calibration_samples": 8,
        "calibration_length": 16,
        "recovery": "kl+hidden:0.1+attention:0.1",
        "recovery_tokens": 500,
        "recovery_length": 16,
        "recovery_batch_size": 4,
        "recovery_lora_start": "closed-form",
        "recovery_lora_rank": 4,
        "recovery_learning_rate": 3e-4,  # the closed form leaves little to learn
        "recovery_keep_adapter": "me/small",
        "eval_text": str(other_text),
        "eval_samples": 3,
        "eval_length": 16,
        "benchmark": False,
    }
    shrinker = IShrinker.from_pretrained(llama_folder, dtype="float32", device="cpu")
    result = shrinker.shrink(save_directory=tmp_path / "out", **how)
    recovery = result.report.recovery
    assert recovery is not None and recovery.data == ("self",)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert read_json(tmp_path / "out" / "adapter" / "adapter_config.json")["base_model_name_or_path"] == "me/small"
    # The adapter on the cut model is the merged checkpoint.
    cut = shrinker.shrink(
        save_directory=tmp_path / "cut", **{**how, "recovery": "none", "recovery_keep_adapter": None}
    )
    cut_model = cut.model
    adapted = PeftModel.from_pretrained(cut_model, tmp_path / "out" / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(adapted(IDS).logits, result.model(IDS).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(cut.model(IDS).logits, shrinker._session.model(IDS).logits)
    # Training gradients must not have been switched off in the base, which other runs read.
    assert all(parameter.requires_grad for parameter in shrinker._session.model.parameters())


def test_a_start_from_the_cut_is_nearer_than_zero(
    small: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = {}
    for start in ("zero", "closed-form"):
        recover(small, tmp_path / start, [*flags, "--no-evaluate"], "--recovery-lora-start", start)
        starts[start] = recovered(tmp_path / start)["held_out_loss_before"]
    assert starts["closed-form"] < 0.95 * starts["zero"]


def test_a_closed_form_repair_comes_before_the_training(small: Path, flags: list[str], tmp_path: Path) -> None:
    how = ["--recovery-compensation", "ridge", "--recovery-compensation-samples", "16"]
    assert recover(small, tmp_path / "out", changed(flags, recovery_learning_rate="0.001"), *how) == 0
    facts = recovered(tmp_path / "out")
    assert facts["held_out_loss"] < facts["held_out_loss_solved"] < 0.95 * facts["held_out_loss_before"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"the loss was {facts['held_out_loss_solved']:.4f} after that." in card
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # Full weights from the same start stand where the facts say; nothing of an adapter is involved there.
    how += ["--recovery-train", "full", "--no-evaluate"]
    assert recover(small, tmp_path / "full", changed(flags, recovery_learning_rate="1e-12"), *how) == 0
    again = recovered(tmp_path / "full")
    assert again["held_out_loss_solved"] == pytest.approx(facts["held_out_loss_solved"], rel=1e-5)


def test_a_closed_form_repair_stays_where_training_helps_nowhere(
    small: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    how = ["--recovery-compensation", "ridge", "--no-evaluate"]
    assert recover(small, tmp_path / "out", changed(flags, recovery_learning_rate="0.9"), *how) == 0
    assert "so the weights stay as they were re-fit" in capsys.readouterr().err
    old, new = (load_file(folder / "model.safetensors") for folder in (small, tmp_path / "out"))
    other = {name for name in old if not torch.equal(old[name], new[name])}
    assert other
    assert all("down_proj" in name for name in other)
    facts = recovered(tmp_path / "out")
    assert (facts["helped"], facts["best_step"]) == (True, 0)
    assert facts["held_out_loss"] == facts["held_out_loss_solved"]


def test_training_that_helps_nowhere_leaves_the_weights(
    small: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        recover(small, tmp_path / "out", changed(flags, recovery_learning_rate="0.3"), "--keep-adapter", "me/x") == 0
    )
    assert "so the weights stay as they were;" in capsys.readouterr().err
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (small / weights).read_bytes()
    assert not (tmp_path / "out" / "adapter").exists()
    facts = recovered(tmp_path / "out")
    assert (facts["helped"], facts["adapter_base"]) == (False, None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "so the weights were left as they were after the cut" in card
    assert "the loss fell from" not in card


@pytest.mark.parametrize(("data", "times"), [(None, 1), ("self", 2)])
def test_text_is_tokenised_once_unless_it_is_sampled(
    data: str | None, times: int, small: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def count(*given: Any, **how: Any) -> Any:
        read.append(given)
        return recovery_text(*given, **how)

    for module in (preparation, stage):
        monkeypatch.setattr(module, "recovery_text", count)
    more = [] if data is None else ["--recovery-data", data]
    assert recover(small, tmp_path / "out", [*flags, "--no-evaluate"], *more, "--recovery-train", "norms") == 0
    assert len(read) == times


def test_only_tensors_that_were_trained_are_written(small: Path, flags: list[str], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    recover(small, tmp_path / "out", [*flags, "--no-evaluate"], "--recovery-train", "norms")
    old, new = (load_file(folder / "model.safetensors") for folder in (small, tmp_path / "out"))
    for name in old:
        assert torch.equal(old[name], new[name]) is ("norm" not in name), name


@pytest.mark.parametrize("how", in_full(["gpt2", "qwen3_moe", "bfloat16", "sharded"], "gpt2", "sharded"))
def test_checkpoints_of_every_make_are_written_back(how: str, text_file: Path, tmp_path: Path) -> None:
    """A checkpoint that ishrink did not cut, without a plan: the other layouts on disk."""
    config = tiny_config(how if how in ("gpt2", "qwen3_moe") else "llama")
    more: dict[str, Any] = {"max_shard_size": "60KB"} if how == "sharded" else {}
    folder = save_tiny(tmp_path / "model", config, **more)
    if how == "bfloat16":
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    status = main(
        f"recover --model {folder} --output {tmp_path}/out --recovery ce --recovery-data {text_file} --no-benchmark "
        "--recovery-tokens 300 --recovery-length 16 --recovery-batch-size 2 --recovery-learning-rate 0.01 "
        "--recovery-lora-rank 2 --no-evaluate --dtype float32 --device cpu".split()
    )
    assert status == 0
    old, new = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "out"))
    assert new.dtype == old.dtype
    assert not torch.equal(old(IDS).logits, new(IDS).logits)
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *names,
        "ishrink_config.json",
        "ishrink_report.json",
    }
    assert len(list(folder.glob("*.safetensors"))) == (1 if how != "sharded" else 4) or how == "sharded"


# Killed and resumed.


def test_a_larger_teacher_of_the_same_tokenizer(small: Path, flags: list[str], tmp_path: Path) -> None:
    larger = save_tiny(tmp_path / "larger", tiny_config("llama", num_hidden_layers=6), seed=5)
    words = changed(flags, teacher=str(larger))
    assert recover(small, tmp_path / "out", words, "--recovery", "kl+hidden:0.1") == 0
    report = Report.from_json(read_json(tmp_path / "out" / "ishrink_report.json"))
    assert {m.metric for m in report.shrunk.quality} == {"perplexity", "bits_per_byte"}
    facts = recovered(tmp_path / "out")
    assert (facts["teacher"], facts["before"]) == ("larger", [])
    assert "against larger" in (tmp_path / "out" / "README.md").read_text()


def test_sampled_text_and_the_teachers_predictions_behind_bos_are_stored_apart(
    small: Path, llama_folder: Path, flags: list[str], tmp_path: Path
) -> None:
    teacher = shutil.copytree(llama_folder, tmp_path / "teacher")
    how = [*flags, "--recovery-data", "self", "--recovery-cache", str(tmp_path / "cache"), "--no-evaluate"]
    how += ["--teacher", str(teacher)]

    def stored() -> tuple[int, int]:
        names = [path.name for path in (tmp_path / "cache").iterdir()]
        return sum(name.startswith("self-") for name in names), sum(name.startswith("teacher-") for name in names)

    assert recover(small, tmp_path / "plain", how) == 0
    before = stored()
    assert before[0] == 1
    assert "begins_with" not in recovered(tmp_path / "plain")
    beginning_tokenizer(template="{% for m in messages %}<u>{{ m.content }}{% endfor %}").save_pretrained(teacher)
    assert recover(small, tmp_path / "begun", how) == 0
    assert stored() == tuple(2 * count for count in before)
    assert recovered(tmp_path / "begun")["begins_with"] == "<s>"
    again = "{% for m in messages %}<v>{{ m.content }}{% endfor %}"
    beginning_tokenizer(template=again).save_pretrained(teacher)
    assert recover(small, tmp_path / "otherwise", how) == 0
    assert stored() == tuple(3 * count for count in before)
