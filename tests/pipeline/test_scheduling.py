"""Cutting and recovering in turn: the same stages, one result, and a run that is killed goes on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinker, RequestError
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.pipeline import scheduling
from optimum_ishrink.pipeline.schedule_folder import schedule_folder
from optimum_ishrink.recovery.work_folder import work_folder
from optimum_ishrink.report.report import Report


@pytest.fixture(scope="module")
def how(text_file: Path, other_text: Path) -> dict[str, Any]:
    return {
        "num_hidden_layers": 3,
        "intermediate_size": 16,
        "calibration": str(text_file),
        "calibration_samples": 8,
        "calibration_length": 16,
        "compensation": "none",
        "recovery": "kl",
        "recovery_data": ["self", str(text_file)],
        "recovery_tokens": 900,
        "recovery_length": 16,
        "recovery_batch_size": 4,
        "recovery_save_steps": 2,
        "recovery_learning_rate": 0.003,
        "recovery_lora_rank": 4,
        "eval_text": str(other_text),
        "eval_samples": 3,
        "eval_length": 16,
        "benchmark": False,
    }


def shrinker(folder: Path) -> IShrinker:
    return IShrinker.from_pretrained(folder, dtype="float32", device="cpu")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_one_cut_and_one_recovery_is_a_shrink_with_recovery(
    llama_folder: Path, how: dict[str, Any], tmp_path: Path
) -> None:
    plain = shrinker(llama_folder).shrink(save_directory=tmp_path / "plain", **how)
    found = shrinker(llama_folder).shrink(save_directory=tmp_path / "found", schedule="cut,recover", **how)
    assert weights(tmp_path / "plain") == weights(tmp_path / "found")
    assert found.plan == plain.plan
    assert found.report.shrunk.quality == plain.report.shrunk.quality
    one, two = plain.report.recovery, found.report.recovery
    assert one is not None and two is not None and one.before == two.before and one.before
    assert one.held_out_losses == two.held_out_losses and one.helped
    assert found.report.compensation == plain.report.compensation
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("plain", "found")]
    assert names[0] == names[1]
    assert not schedule_folder(tmp_path / "found").exists() and plain.report.stages is None


def test_fine_to_coarse_gives_one_result_with_its_stages(
    llama_folder: Path, how: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    schedule = "width,recover,depth,recover"
    found = shrinker(llama_folder).shrink(save_directory=out, schedule=schedule, **how)
    plan, stages = found.plan, found.report.stages
    assert plan is not None and stages is not None
    assert dict(plan.shape)["num_hidden_layers"] == 4 and dict(plan.new_shape)["num_hidden_layers"] == 3
    assert len(plan.layers) == 3 and all(len(row) == 16 for row in plan.units["intermediate_size"])
    assert [stage.name for stage in stages] == schedule.split(",")
    trained = [stage.recovery for stage in stages if stage.recovery is not None]
    assert len(trained) == 2 and trained[0].held_out_windows == trained[1].held_out_windows
    whole = shrinker(llama_folder).shrink(**how).report
    assert whole.recovery is not None
    assert trained[0].planned_steps + trained[1].planned_steps == whole.recovery.planned_steps
    # The evidence is against the base, whose figures do not depend on the way.
    report = found.report
    assert report.base == whole.base and report.shrunk.params == whole.shrunk.params == stages[-1].num_parameters
    assert report.recovery is not None and report.recovery.before
    assert Report.from_json(report.to_json()) == report
    card = (out / "README.md").read_text()
    assert "## Stages" in card and "| 3. depth" in card and "--schedule width,recover,depth,recover" in card
    assert read_json(out / "ishrink_config.json")["schedule"] == schedule
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    AutoModelForCausalLM.from_pretrained(out)(torch.arange(3, 9)[None])
    again = IShrinker.from_pretrained(out).recover(
        recovery="kl", recovery_teacher=str(llama_folder), **{key: how[key] for key in how if "recovery_" in key}
    )
    assert again.report.stages == stages and again.plan == plan


def test_steps_of_every_dimension(llama_folder: Path, how: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "intermediate_size": 8, "num_key_value_heads": 2, "evaluate": False}
    found = shrinker(llama_folder).shrink(
        save_directory=tmp_path / "out", schedule="2x(cut,recover)", **{**how, **sizes}
    )
    stages = found.report.stages
    assert stages is not None and stages[0].shape["num_hidden_layers"] == 3
    plan = found.plan
    assert plan is not None and dict(plan.new_shape) == dict(stages[-1].shape)
    assert all(len(row) == 2 for row in plan.units["num_key_value_heads"])
    assert load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].shape[1] == 8


def test_a_vocabulary_goes_first_and_a_schedule_may_end_with_a_cut(
    llama_folder: Path, how: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = shrinker(llama_folder).shrink(
        save_directory=out,
        schedule="vocabulary,recover,cut",
        vocab_size=280,
        vocab_multiple=1,
        **{**how, "recovery_train": "embeddings", "recovery_learning_rate": 1e-3, "calibration": "self"},
    )
    plan, stages = found.plan, found.report.stages
    assert plan is not None and stages is not None and plan.vocabulary is not None
    assert found.report.recovery is None and stages[1].recovery is not None
    assert load_file(out / "model.safetensors")["model.embed_tokens.weight"].shape[0] == 280
    assert len(plan.vocabulary.rows) == 280 and len(plan.layers) == 3
    assert "No gradient step was taken after the last cut" in (out / "README.md").read_text()


def test_a_run_that_stops_goes_on_at_the_first_unfinished_stage(
    llama_folder: Path, how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {**how, "evaluate": False, "schedule": "width,recover,depth,recover"}
    shrinker(llama_folder).shrink(save_directory=tmp_path / "whole", **how)
    cut = scheduling._cut
    monkeypatch.setattr(scheduling, "_cut", partial(_first, cut))
    with pytest.raises(KeyboardInterrupt):
        shrinker(llama_folder).shrink(save_directory=tmp_path / "out", **how)
    work = schedule_folder(tmp_path / "out")
    assert not (tmp_path / "out").exists() and (work / "2-recover").is_dir() and not (work / "3-depth").exists()
    with pytest.raises(RequestError, match=r"holds 2 finished stages of another request \(seed differ\)"):
        shrinker(llama_folder).shrink(save_directory=tmp_path / "out", seed=1, **how)
    monkeypatch.setattr(scheduling, "_cut", partial(_later, cut))
    shrinker(llama_folder).shrink(save_directory=tmp_path / "out", **how)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def _first(cut: Any, job: Any, stages: Any, number: int, *rest: Any) -> None:
    if number > 1:
        raise KeyboardInterrupt
    cut(job, stages, number, *rest)


def _later(cut: Any, job: Any, stages: Any, number: int, *rest: Any) -> None:
    assert number == 3, "the first stage is there"
    cut(job, stages, number, *rest)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_weights(
    llama_folder: Path, how: dict[str, Any], tmp_path: Path
) -> None:
    how = {**how, "evaluate": False, "schedule": "width,recover,depth,recover", "recovery_on_policy": 0.5}
    shrinker(llama_folder).shrink(save_directory=tmp_path / "whole", **how)
    words = [sys.executable, "-m", "optimum_ishrink", "shrink", "--model", str(llama_folder), "--no-evaluate"]
    words += ["--output", str(tmp_path / "killed"), "--no-benchmark", "--dtype", "float32", "--device", "cpu"]
    for name, value in how.items():
        if name not in ("evaluate", "benchmark"):
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += ["--" + name.replace("_", "-"), text]
    work = schedule_folder(tmp_path / "killed")
    for reached in (work_folder(work / "2-recover") / "checkpoint-2", work / "2-recover", work / "3-depth"):
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while not reached.exists():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed").exists()
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert not work.exists()


def test_what_is_refused(llama_folder: Path, how: dict[str, Any], tmp_path: Path) -> None:
    made = shrinker(llama_folder)
    with pytest.raises(RequestError, match="names heads, which the target does not need"):
        made.shrink(schedule="cut,heads,recover", **how)
    with pytest.raises(RequestError, match="names heads, which the target does not need"):
        made.plan(schedule="cut,heads,recover", check_all=True, **how)
    assert made.plan(schedule="width,recover,depth,recover", check_all=True, **how).new_shape["num_hidden_layers"] == 3
    with pytest.raises(RequestError, match="900 tokens give 13 steps, and the schedule recovers 14 times"):
        made.shrink(schedule="14x(cut,recover)", **{**how, "num_hidden_layers": 4, "intermediate_size": 10})
    with pytest.raises(RequestError, match="schedule='cut,recover' is for shrink, which cuts and recovers in turn"):
        made.recover(schedule="cut,recover", recovery="kl", recovery_teacher=str(llama_folder))
    with pytest.raises(RequestError, match="is not empty; name another folder"):
        shutil.copytree(llama_folder, tmp_path / "full")
        made.shrink(schedule="cut,recover", save_directory=tmp_path / "full", **how)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_shape_on_the_way_that_cannot_be_made(
    llama_folder: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Any, options: Any, *_: Any, **__: Any) -> None:
        raise ShapeError("the class has no such shape")

    monkeypatch.setattr(scheduling, "check_shape", refuse)
    with pytest.raises(RequestError, match=r"stage 1 of the schedule \(width\): the class has no such shape"):
        shrinker(llama_folder).shrink(schedule="width,depth,recover", **how)
