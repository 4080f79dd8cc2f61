"""Recovery as a whole: the command line, the output folder, being killed, and two processes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinkConfig, IShrinker, RequestError
from optimum_ishrink.cli.run import main
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.recovery.stage import check_device
from optimum_ishrink.recovery.teacher import check_tokenizers, check_vocabularies
from optimum_ishrink.recovery.work_folder import checkpoints, work_folder
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.report.report import Report
from tests.helpers.tiny import save_tiny, tiny_config, tiny_tokenizer

IDS = torch.arange(3, 12)[None]


@pytest.fixture(scope="module")
def small(llama_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned tiny model that tests read and never change."""
    target = tmp_path_factory.mktemp("pruned") / "small"
    IShrinker.from_pretrained(llama_folder, dtype="float32").shrink(
        num_hidden_layers=3,
        intermediate_size=16,
        calibration=str(text_file),
        calibration_samples=8,
        calibration_length=16,
        evaluate=False,
        benchmark=False,
        save_directory=target,
    )
    return target


@pytest.fixture(scope="module")
def flags(llama_folder: Path, text_file: Path, other_text: Path) -> list[str]:
    words = f"""
        --teacher {llama_folder} --recovery-data {text_file} --recovery-tokens 700 --recovery-length 16
        --recovery-lora-rank 4 --recovery-learning-rate 0.01 --recovery-save-steps 2 --recovery-batch-size 4
        --batch-size 2 --eval-text {other_text} --eval-samples 3 --eval-length 16 --no-benchmark --dtype float32
        --device cpu
    """
    return words.split()


def recover(small: Path, output: Path, flags: list[str], *more: str) -> int:
    return main(["recover", "--model", str(small), "--output", str(output), *flags, *more])


def changed(flags: list[str], **values: str) -> list[str]:
    words = list(flags)
    for name, value in values.items():
        words[words.index("--" + name.replace("_", "-")) + 1] = value
    return words


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
    plan = Plan.from_json(read_json(folder / "ishrink_plan.json"))
    old = Plan.from_json(read_json(small / "ishrink_plan.json"))
    assert (plan.layers, plan.units, plan.new_shape) == (old.layers, old.units, old.new_shape)
    facts = plan.settings["recovery"]
    assert facts["tokens"] == facts["steps"] * 4 * 16 <= 700
    assert facts["held_out_loss"] < facts["held_out_loss_before"]
    report = Report.from_json(read_json(folder / "ishrink_report.json"))
    assert Report.from_json(printed["report"]) == report
    assert report.base is not None
    # What it says of the time before is what the pruned model gives.
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
    facts = result.plan.settings["recovery"]
    assert facts["data"] == ["self"]
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
        plan = read_json(tmp_path / start / "ishrink_plan.json")
        starts[start] = plan["settings"]["recovery"]["held_out_loss_before"]
    assert starts["closed-form"] < 0.95 * starts["zero"]


def test_a_closed_form_repair_comes_before_the_training(small: Path, flags: list[str], tmp_path: Path) -> None:
    how = ["--recovery-compensation", "ridge", "--recovery-compensation-samples", "16"]
    assert recover(small, tmp_path / "out", changed(flags, recovery_learning_rate="0.001"), *how) == 0
    facts = read_json(tmp_path / "out" / "ishrink_plan.json")["settings"]["recovery"]
    assert facts["held_out_loss"] < facts["held_out_loss_solved"] < 0.95 * facts["held_out_loss_before"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"in closed form; after that it was {facts['held_out_loss_solved']:.4f}." in card
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # Full weights from the same start stand where the facts say; nothing of an adapter is involved there.
    how += ["--recovery-train", "full", "--no-evaluate"]
    assert recover(small, tmp_path / "full", changed(flags, recovery_learning_rate="1e-12"), *how) == 0
    again = read_json(tmp_path / "full" / "ishrink_plan.json")["settings"]["recovery"]
    assert again["held_out_loss_solved"] == pytest.approx(facts["held_out_loss_solved"], rel=1e-5)


def test_a_closed_form_repair_stays_where_training_helps_nowhere(
    small: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    how = ["--recovery-compensation", "ridge", "--no-evaluate"]
    assert recover(small, tmp_path / "out", changed(flags, recovery_learning_rate="0.9"), *how) == 0
    assert "so the weights stay as they were solved" in capsys.readouterr().err
    old, new = (load_file(folder / "model.safetensors") for folder in (small, tmp_path / "out"))
    other = {name for name in old if not torch.equal(old[name], new[name])}
    assert other
    assert all("down_proj" in name for name in other)
    facts = read_json(tmp_path / "out" / "ishrink_plan.json")["settings"]["recovery"]
    assert (facts["helped"], facts["best_step"]) == (True, 0)
    assert facts["held_out_loss"] == facts["held_out_loss_solved"]


def test_training_that_helps_nowhere_leaves_the_weights(
    small: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        recover(small, tmp_path / "out", changed(flags, recovery_learning_rate="0.3"), "--keep-adapter", "me/x") == 0
    )
    assert "so the weights stay as they were cut" in capsys.readouterr().err
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (small / weights).read_bytes()
    assert not (tmp_path / "out" / "adapter").exists()
    facts = read_json(tmp_path / "out" / "ishrink_plan.json")["settings"]["recovery"]
    assert (facts["helped"], facts["adapter_base"]) == (False, None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "so the weights stayed as they were cut" in card
    assert "the loss went from" not in card


def test_only_tensors_that_were_trained_are_written(small: Path, flags: list[str], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    recover(small, tmp_path / "out", [*flags, "--no-evaluate"], "--recovery-train", "norms")
    old, new = (load_file(folder / "model.safetensors") for folder in (small, tmp_path / "out"))
    for name in old:
        assert torch.equal(old[name], new[name]) is ("norm" not in name), name


@pytest.mark.parametrize("how", ["gpt2", "qwen3_moe", "bfloat16", "sharded"])
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


# Killed and gone on with.


def test_killed_at_any_moment_it_ends_with_the_same_weights(small: Path, flags: list[str], tmp_path: Path) -> None:
    words = [*changed(flags, recovery_tokens="1600"), "--no-evaluate", "--recovery-lora-dropout", "0.2"]
    words += ["--recovery-patience", "99", "--recovery-compensation", "ridge"]
    command = [sys.executable, "-m", "optimum_ishrink", "recover", "--model", str(small)]
    work = work_folder(tmp_path / "killed")
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "killed"), *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while not checkpoints(work):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    # Another seed, other data or another plan may not go on with it.
    assert recover(small, tmp_path / "killed", [*words, "--seed", "1"]) == 2
    assert recover(small, tmp_path / "killed", changed(words, recovery_tokens="1500")) == 2
    other = shutil.copytree(small, tmp_path / "other")
    shutil.copyfile(small / "model.safetensors", other / "model.safetensors")
    plan = read_json(other / "ishrink_plan.json")
    (other / "ishrink_plan.json").write_text(json.dumps({**plan, "layers": [0, 1, 3]}))
    assert recover(other, tmp_path / "killed", words) == 2
    assert work.is_dir()
    assert recover(small, tmp_path / "killed", words) == 0
    facts = read_json(tmp_path / "killed" / "ishrink_plan.json")["settings"]["recovery"]
    assert facts["resumed_from_step"] >= 2
    assert not work.exists()
    assert recover(small, tmp_path / "whole", words) == 0
    killed, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole"))
    assert killed == whole


def test_a_shrink_that_was_stopped_in_its_recovery_goes_on(
    llama_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum_ishrink.recovery import training as run

    def shrink(name: str) -> Any:
        return IShrinker.from_pretrained(llama_folder, dtype="float32", device="cpu").shrink(
            num_hidden_layers=3,
            layer_importance="l2-norm",
            recovery="kl",
            recovery_data=f"self,{text_file}",
            recovery_tokens=500,
            recovery_length=16,
            recovery_batch_size=4,
            recovery_save_steps=2,
            evaluate=False,
            benchmark=False,
            save_directory=tmp_path / name,
        )

    def stop(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.ShowProgress, "on_pre_optimizer_step", stop)
        shrink("parts")
    assert [path.name for path in tmp_path.iterdir()] == [".parts.recovery"]
    monkeypatch.setattr("optimum_ishrink.recovery.self_text.sample_text", None)  # what was sampled is kept
    assert shrink("parts").plan.settings["recovery"]["resumed_from_step"] == 2
    monkeypatch.undo()
    shrink("whole")
    parts, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("parts", "whole"))
    assert parts == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


def test_two_processes_give_the_curve_of_one(small: Path, flags: list[str], tmp_path: Path) -> None:
    words = [*flags, "--no-evaluate", "--recovery", "kl+ce:0.1"]
    assert recover(small, tmp_path / "one", words) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", _free_port()]
    command = [*torchrun, "-m", "optimum_ishrink", "recover", "--model", str(small), "--output", str(tmp_path / "two")]
    done = subprocess.run([*command, *words, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    one, two = (read_json(tmp_path / name / "ishrink_plan.json")["settings"]["recovery"] for name in ("one", "two"))
    assert printed["plan"]["settings"]["recovery"] == two
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["steps"] == two["steps"]
    curves = [torch.tensor(facts["held_out_losses"]) for facts in (one, two)]
    torch.testing.assert_close(curves[1], curves[0], atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(tmp_path / name)(IDS).logits for name in ("one", "two")]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-3, rtol=1e-3)


def _free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


# Bad requests.


def test_a_teacher_with_another_vocabulary(
    small: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny(tmp_path / "other", tiny_config("llama", vocab_size=310))
    assert recover(small, tmp_path / "out", changed(flags, teacher=str(other))) == 2
    error = capsys.readouterr().err
    assert "the teacher has a vocabulary of 310 tokens, the model one of 300" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]
    with pytest.raises(RequestError, match="310 tokens, the model one of 300"):
        check_vocabularies(tiny_config("llama"), tiny_config("llama", vocab_size=310))


def test_a_teacher_with_another_tokenizer() -> None:
    class Other:
        def get_vocab(self) -> dict[str, int]:
            return {**tiny_tokenizer().get_vocab(), "a": 299}

    with pytest.raises(RequestError, match="token 'a' has number 299 there and"):
        check_tokenizers(tiny_tokenizer(), Other())


def test_a_larger_teacher_of_the_same_tokenizer(small: Path, flags: list[str], tmp_path: Path) -> None:
    larger = save_tiny(tmp_path / "larger", tiny_config("llama", num_hidden_layers=6), seed=5)
    words = changed(flags, teacher=str(larger))
    assert recover(small, tmp_path / "out", words, "--recovery", "kl+hidden:0.1") == 0
    report = Report.from_json(read_json(tmp_path / "out" / "ishrink_report.json"))
    assert {m.metric for m in report.shrunk.quality} == {"perplexity", "bits_per_byte"}
    facts = read_json(tmp_path / "out" / "ishrink_plan.json")["settings"]["recovery"]
    assert (facts["teacher"], facts["before"]) == ("larger", [])
    assert "against larger" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recovery", "lk"], "unknown loss 'lk'"),
        (["--recovery-tokens", "20"], "20 tokens are 1 windows of 16, too few for one step"),
        (["--recovery-tokens", "90000"], "give more text, or fewer tokens"),
        (["--recovery-labels", "answers", "--recovery", "ce"], "is plain text without answers"),
        (["--recovery-data", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--eval-text", "TEXT"], "is given for recovery and for evaluation"),
        (["--keep-adapter"], "this one has no name on the Hub.*--keep-adapter USER/NAME"),
        (["--keep-adapter", "me/x", "--recovery-train", "full"], "keeps a LoRA adapter, and recovery_train='full'"),
        (["--recovery-lora-start", "closed-form", "--recovery-train", "full"], "solves for what was cut"),
        (["--recovery-compensation", "ridge", "--keep-adapter", "me/x"], "changes other weights of it; leave out one"),
        (
            ["--recovery-compensation", "ridge", "--recovery-compensation-samples", "3"],
            "at least 4 calibration windows, not 3; raise recovery_compensation_samples",
        ),
        (["--recovery-lora-targets", "q_prj"], "unknown LoRA target 'q_prj'"),
        (["--recovery-train", "last:9"], "last:9 layers were asked to be trained; the model has 3"),
    ],
)
def test_bad_requests_get_one_line_and_leave_no_output(
    arguments: list[str],
    message: str,
    small: Path,
    flags: list[str],
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(text_file) if word == "TEXT" else word for word in arguments]
    quick = [] if "--eval-text" in words else ["--no-evaluate"]
    assert recover(small, tmp_path / "out", flags, *quick, *words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ishrink recover: error: ")
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_a_teacher_has_to_be_named_where_there_is_none(
    small: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recover(small, tmp_path / "out", flags[2:]) == 2
    assert "names no base on the Hub; pass --teacher with the unpruned model" in capsys.readouterr().err
    assert recover(small, tmp_path / "out", [*flags[2:], "--no-evaluate"], "--recovery", "ce") == 0


def test_shrink_does_not_run_in_several_processes(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="shrink runs in one process; cut with --recovery none, then run"):
        IShrinker.from_pretrained(llama_folder).shrink(
            IShrinkConfig(num_hidden_layers=3, recovery="kl"), save_directory=tmp_path / "out"
        )


def test_recovery_is_checked_before_the_cut(
    llama_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimum_ishrink.pipeline.plan_cut", lambda *_, **__: pytest.fail("the long work had begun"))
    other = save_tiny(tmp_path / "other", tiny_config("llama", vocab_size=310))
    for changes, message in (
        ({"recovery_data": str(text_file), "recovery_tokens": 90_000}, "give more text, or fewer tokens"),
        ({"recovery_labels": "answers"}, "the model's own words have no answers"),
        ({"recovery_teacher": str(other)}, "310 tokens, the model one of 300"),
        ({"recovery_teacher": str(llama_folder), "recovery_lora_start": "closed-form"}, "solves for what was cut"),
        ({"recovery_teacher": str(llama_folder), "recovery_compensation": "ridge"}, "solves for what was cut"),
        ({"recovery_keep_adapter": "auto"}, "no name on the Hub"),
    ):
        with pytest.raises(RequestError, match=message):
            IShrinker.from_pretrained(llama_folder).shrink(num_hidden_layers=3, recovery="kl", **changes)


def test_another_cuda_device_is_refused() -> None:
    check_device(torch.device("cpu"))
    check_device(torch.device("cuda:0"))
    with pytest.raises(RequestError, match="not on cuda:1; set CUDA_VISIBLE_DEVICES=1"):
        check_device(torch.device("cuda:1"))


def test_a_request_without_a_checkpoint_makes_room_for_the_next(
    small: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags, "--no-evaluate"]
    assert recover(small, tmp_path / "out", words, "--recovery-lora-targets", "q_prj") == 2
    assert work_folder(tmp_path / "out").is_dir()
    assert recover(small, tmp_path / "out", words, "--recovery-lora-targets", "q_proj") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_output_may_not_hold_the_model(small: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert recover(small, small, [*flags, "--overwrite"]) == 2
    assert "is the input" in capsys.readouterr().err
    assert (small / "model.safetensors").is_file()
