"""What stops training on tiny models, what is left then, and that it resumes exactly."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from optimum_ishrink.errors import NotFiniteError, OutputError, TrainingError
from optimum_ishrink.recovery import training as run
from optimum_ishrink.recovery.teacher import LiveTeacher
from optimum_ishrink.recovery.trainer import RecoveryTrainer
from optimum_ishrink.recovery.work_folder import checkpoints
from tests.helpers.small_recovery import cut_model, go, random_text, shallow


class Crash(TrainerCallback):  # type: ignore[misc]
    """Stands for a machine that stops in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("changes", [{"dropout": 0.3}, {"trained": "full"}, {"epochs": 2, "micro_batch_size": 1}])
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**changes, "save_steps": 2, "text": random_text(28)}
    whole = go(tmp_path / "whole", **changes)
    whole_bar = run.ShowProgress
    for crash in (3, 5):
        monkeypatch.setattr(run, "ShowProgress", lambda crash=crash: _with(whole_bar(), Crash(crash)))
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "parts", **changes)
        assert [path.name for path in checkpoints(tmp_path / "parts")][-1] == f"checkpoint-{crash - 1}"
    monkeypatch.setattr(run, "ShowProgress", whole_bar)
    torch.rand(5)  # another process has another random state
    again = go(tmp_path / "parts", **changes)
    assert again.record.resumed_from_step == 4
    assert again.losses == whole.losses
    assert again.record.held_out_losses == whole.record.held_out_losses
    assert all(torch.equal(again.parameters[name], value) for name, value in whole.parameters.items())


def _with(bar: Any, crash: Crash) -> Any:
    bar.on_pre_optimizer_step = crash.on_pre_optimizer_step
    return bar


def test_sigterm_saves_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = run.ShowProgress

    class Signal(original):  # type: ignore[misc, valid-type]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run, "ShowProgress", Signal)
    with pytest.raises(
        TrainingError, match="stopped by SIGTERM after step 3 of 8; the same command resumes from there"
    ):
        go(tmp_path / "parts")
    assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.setattr(run, "ShowProgress", original)
    again, whole = go(tmp_path / "parts"), go(tmp_path / "whole")
    assert again.record.resumed_from_step == 3
    assert all(torch.equal(again.parameters[name], value) for name, value in whole.parameters.items())


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = shallow()
    live = LiveTeacher(teacher)
    calls = 0
    original = live.teach

    def teach(input_ids: torch.Tensor, windows: torch.Tensor) -> Any:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == 11:  # the first half of the sixth step
            with torch.no_grad():
                teacher.lm_head.weight[5] = float("nan")
        return original(input_ids, windows)

    monkeypatch.setattr(live, "teach", teach)
    with pytest.raises(TrainingError, match=r"NaN or infinite at step 6; the checkpoint of step 4 is in"):
        go(tmp_path, live, micro_batch_size=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]
    with pytest.raises(
        NotFiniteError, match=r"loss on the held-out recovery text .* before the first step \(loss nan"
    ):
        go(tmp_path / "other", LiveTeacher(teacher))


def test_a_damaged_model_is_named_before_the_first_step(tmp_path: Path) -> None:
    model = cut_model(shallow())
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"the model to recover gives NaN .*, first in model.layers.1.mlp"):
        go(tmp_path, model=model)
    assert not checkpoints(tmp_path)


def test_a_held_out_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RecoveryTrainer.held_out_loss

    def held_out_loss(self: Any) -> dict[str, float]:
        found = original(self)
        return {**found, "loss": float("nan")} if self.state.global_step else found

    monkeypatch.setattr(RecoveryTrainer, "held_out_loss", held_out_loss)
    with pytest.raises(TrainingError, match=r"the held-out loss became NaN or infinite after step 4; try a lower"):
        go(tmp_path)


def test_no_room_for_a_checkpoint_keeps_the_last_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimum_ishrink.recovery import trainer

    original = trainer.save_tensors
    written = 0

    def fill(path: Path, tensors: Any) -> None:
        nonlocal written
        written += 1
        if written == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(path, tensors)

    monkeypatch.setattr(trainer, "save_tensors", fill)
    with pytest.raises(OutputError, match="No space left on device; free some space .*: it resumes from step 4"):
        go(tmp_path)
    assert [path.name for path in sorted(tmp_path.glob("*check*"))] == ["checkpoint-4"]
    again = go(tmp_path)
    assert again.record.resumed_from_step == 4


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail] . PytorchStreamWriter failed writing file",
        "basic_ios::clear: iostream error",
        "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0",
    ],
)
def test_torchs_own_words_for_a_full_disk(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(run.RecoveryTrainer, "_save_optimizer_and_scheduler", fail)
    how: dict[str, Any] = {"text": random_text(12), "save_steps": 1}
    with pytest.raises(OutputError, match="No space left on device"):
        go(tmp_path, **how)
    monkeypatch.setattr(run.RecoveryTrainer, "_save_optimizer_and_scheduler", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        go(tmp_path, **how)
