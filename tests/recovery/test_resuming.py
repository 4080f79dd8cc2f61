"""A recovery that is killed or stopped resumes, and several processes share one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinker
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.recovery.work_folder import checkpoints, work_folder
from tests.helpers.recovery_runs import changed, recover, recovered
from tests.helpers.torchrun import torchrun

IDS = torch.arange(3, 12)[None]


# tests/recovery/test_stopping.py stops a run, and sends it a signal.
@pytest.mark.slow
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
    facts = recovered(tmp_path / "killed")
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
            compensation="none",
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
    assert shrink("parts").report.recovery.resumed_from_step == 2
    monkeypatch.undo()
    shrink("whole")
    parts, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("parts", "whole"))
    assert parts == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(small: Path, flags: list[str], tmp_path: Path) -> None:
    words = [*flags, "--no-evaluate", "--recovery", "kl+ce:0.1"]
    assert recover(small, tmp_path / "one", words) == 0
    command = [*torchrun(), "recover", "--model", str(small), "--output", str(tmp_path / "two")]
    done = subprocess.run([*command, *words, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    one, two = (recovered(tmp_path / name) for name in ("one", "two"))
    assert printed["report"]["recovery"] == two
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["steps"] == two["steps"]
    curves = [torch.tensor(facts["held_out_losses"]) for facts in (one, two)]
    torch.testing.assert_close(curves[1], curves[0], atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(tmp_path / name)(IDS).logits for name in ("one", "two")]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-3, rtol=1e-3)
