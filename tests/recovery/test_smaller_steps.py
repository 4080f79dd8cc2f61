"""A training whose memory runs out: the step is run again with fewer windows at once, to the same curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import DeviceMemoryError
from optimum_ishrink.core import micro_batch
from optimum_ishrink.recovery.student import Student
from tests.helpers.small_recovery import go, random_text

OUT = "CUDA out of memory. Tried to allocate 2.00 GiB."


def limited(monkeypatch: pytest.MonkeyPatch, most: int, *, from_call: int = 0) -> list[int]:
    """Let no more than `most` windows run at once from a call of the student on; return the sizes that ran."""
    ran: list[int] = []
    forward = Student.forward

    def run(self: Any, input_ids: torch.Tensor, *others: Any, **named: Any) -> Any:
        found = forward(self, input_ids, *others, **named)
        if len(ran) >= from_call and len(input_ids) > most:
            raise torch.cuda.OutOfMemoryError(OUT)
        ran.append(len(input_ids))
        return found

    monkeypatch.setattr(Student, "forward", run)
    return ran


@pytest.mark.parametrize("trained", ["lora", "full"])
def test_the_curve_is_the_same(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = random_text(16)
    text.labels[:, :7] = -100
    how: dict[str, Any] = {"text": text, "loss": "ce+kl", "trained": trained, "learning_rate": 1e-3}
    plain = go(tmp_path / "plain", **how)
    ran = limited(monkeypatch, 2, from_call=3)  # the held-out text, one step, and part of no other
    short = go(tmp_path / "short", **how)
    assert "recovery: out of memory with 4 windows at once; it goes on with 2" in capsys.readouterr().err
    assert ran[:3] == [4, 4, 4]
    assert set(ran[3:]) == {2}
    for name in ("losses", "learning_rates"):
        one, other = (torch.tensor(getattr(found, name)) for found in (plain, short))
        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)
    assert short.record.held_out_loss == pytest.approx(plain.record.held_out_loss, abs=1e-4)
    for name, value in plain.parameters.items():
        torch.testing.assert_close(short.parameters[name], value, atol=1e-4, rtol=1e-3)


def test_memory_that_runs_out_in_the_backward_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = random_text(16)
    plain = go(tmp_path / "plain", text=text, micro_batch_size=2)
    backward, calls = torch.Tensor.backward, []

    def run(self: torch.Tensor, *others: Any, **named: Any) -> None:
        backward(self, *others, **named)  # its gradients are there, and have to go
        calls.append(1)
        if len(calls) == 4:
            raise torch.cuda.OutOfMemoryError(OUT)

    monkeypatch.setattr(torch.Tensor, "backward", run)
    short = go(tmp_path / "short", text=text, micro_batch_size=2)
    assert len(calls) == 4 + 4 + 4  # one step of two, one of two and then four, one of four
    torch.testing.assert_close(torch.tensor(short.losses), torch.tensor(plain.losses), atol=1e-4, rtol=1e-4)


@pytest.fixture
def large_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU pass for a device that counts its memory, and has plenty."""
    monkeypatch.setattr(micro_batch, "is_measured", lambda device: True)
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(micro_batch, "_start_measuring", lambda device: 0)
    monkeypatch.setattr(micro_batch, "_most_taken", lambda device: 10**6)


@pytest.mark.usefixtures("large_device")
def test_it_grows_again_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"text": random_text(44), "batch_size": 8, "micro_batch_size": None, "save_steps": 2}
    with monkeypatch.context() as patch:
        ran = limited(patch, 99)
        run = Student.forward

        def stopped(*args: Any, **named: Any) -> Any:
            if len(ran) == 7:
                raise KeyboardInterrupt
            return run(*args, **named)

        patch.setattr(Student, "forward", stopped)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "work", **how)
    ran = limited(monkeypatch, 99)
    found = go(tmp_path / "work", **how)
    assert found.record.resumed_from_step == 2
    assert ran == [4, 4, 4, 4, 4, 8, 4]  # two steps of eight, held out, one at once, held out


@pytest.mark.usefixtures("large_device")
def test_it_grows_after_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = random_text(28)
    with monkeypatch.context() as patch:
        patch.setattr(micro_batch, "is_measured", lambda device: False)
        plain = go(tmp_path / "plain", text=text, batch_size=8)
    ran = limited(monkeypatch, 99)
    grown = go(tmp_path / "grown", text=text, batch_size=8, micro_batch_size=None)
    assert ran == [4, 4, 4, 4, 4, 8, 4]  # held out, two steps of eight, one at once, held out
    torch.testing.assert_close(torch.tensor(grown.losses), torch.tensor(plain.losses), atol=1e-4, rtol=1e-4)


def test_one_window_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 0)
    with pytest.raises(
        DeviceMemoryError, match=r"recovery ran out of memory on cpu with one window.*--recovery-length"
    ):
        go(tmp_path, text=random_text(8))
