"""Recoveries that are refused, each in one line and before long work."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optimum_ishrink import IShrinkConfig, IShrinker, RequestError
from optimum_ishrink.errors import DataError
from optimum_ishrink.recovery.stage import check_device
from tests.helpers.recovery_runs import changed, recover
from tests.helpers.tiny import save_tiny, tiny_config


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with another tokenizer, that lacks the token `a`."""
    folder = save_tiny(tmp_path_factory.mktemp("teachers") / "other", tiny_config("llama", vocab_size=310))
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace('"a":', '"aa":'), encoding="utf-8")
    return folder


def test_a_teacher_with_another_tokenizer(
    small: Path, flags: list[str], other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recover(small, tmp_path / "out", changed(flags, teacher=str(other))) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the teacher's tokenizer is different: it has no token 'a', which the model's has" in error
    assert not any(tmp_path.iterdir())


def test_a_loss_between_tokens_of_two_vocabularies(
    small: Path, flags: list[str], llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = save_tiny(tmp_path / "larger", tiny_config("llama", vocab_size=310))
    words = [*changed(flags, teacher=str(larger)), "--no-evaluate"]
    assert recover(small, tmp_path / "out", words, "--recovery", "kl+attention:0.1") == 2
    assert "the loss 'attention' relates the tokens of a text to each other" in capsys.readouterr().err
    assert recover(small, tmp_path / "out", words, "--recovery", "kl") == 0
    with pytest.raises(RequestError, match="the teacher has more tokens than the model.*use kl, hidden or ce"):
        IShrinker.from_pretrained(llama_folder).shrink(vocab_size=280, vocab_multiple=1, recovery="attention")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recovery", "lk"], "unknown loss 'lk'"),
        (["--recovery-tokens", "20"], "20 tokens are 1 windows of 16, too few for one step"),
        (["--recovery-tokens", "90000"], "give more text, or fewer tokens"),
        (["--recovery-labels", "answers", "--recovery", "ce"], "is plain text without answers"),
        (["--recovery-data", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--eval-text", "TEXT"], "is given for recovery and for evaluation"),
        (["--torch-compile", "--recovery", "attention"], "the loss 'attention' reads what is inside of them"),
        (["--keep-adapter"], "this one has no name on the Hub.*--keep-adapter USER/NAME"),
        (
            ["--keep-adapter", "me/x", "--recovery-train", "full"],
            "saves a LoRA adapter, and recovery_train='full' trains none",
        ),
        (["--recovery-lora-start", "closed-form", "--recovery-train", "full"], "solves for what was cut"),
        (["--recovery-compensation", "ridge", "--keep-adapter", "me/x"], "changes other weights of it; leave out one"),
        (
            ["--recovery-compensation", "ridge", "--recovery-compensation-samples", "3"],
            "at least 4 calibration windows, not 3; raise recovery_compensation_samples",
        ),
        (
            ["--recovery-for", "q4_0", "--keep-adapter", "me/x"],
            "a calibrated start changes other weights of it; set recovery_rounding='nearest'",
        ),
        (["--recovery-rounding", "calibrated"], "set recovery_for to one of q8_0, q5_1, q5_0, q4_1, q4_0"),
        (["--recovery-lora-targets", "q_prj"], "unknown LoRA target 'q_prj'"),
        (["--recovery-train", "last:9"], "last:9 layers were requested for training; the model has 3"),
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


def test_what_several_processes_cannot_share_is_refused_before_the_cut(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrinker, config = IShrinker.from_pretrained(llama_folder), IShrinkConfig(num_hidden_layers=3, recovery="kl")
    for module in ("scheduling", "training", "cutting"):
        monkeypatch.setattr(f"optimum_ishrink.pipeline.{module}.process_count", lambda: 3)
    with pytest.raises(RequestError, match="a schedule runs in one process; leave out schedule, or start one"):
        shrinker.shrink(config, schedule="cut,recover", save_directory=tmp_path / "out")
    with pytest.raises(RequestError, match="a step of 8 windows cannot be shared by 3 processes"):
        shrinker.shrink(config, recovery_batch_size=8, save_directory=tmp_path / "out")
    monkeypatch.setattr("optimum_ishrink.pipeline.cutting.process_count", lambda: 9)
    with pytest.raises(DataError, match="compensation needs at least 9 calibration windows, not 8; raise"):
        shrinker.shrink(num_hidden_layers=3, calibration_samples=8, save_directory=tmp_path / "out")


def test_recovery_is_checked_before_the_cut(
    llama_folder: Path, text_file: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "optimum_ishrink.pipeline.cutting.score", lambda *_, **__: pytest.fail("the long work had begun")
    )
    for changes, message in (
        ({"recovery_data": str(text_file), "recovery_tokens": 90_000}, "give more text, or fewer tokens"),
        ({"recovery_labels": "answers"}, "text that the model samples itself has no answers"),
        ({"recovery_teacher": str(other)}, "it has no token 'a', which the model's has"),
        ({"recovery_teacher": str(llama_folder), "recovery_lora_start": "closed-form"}, "solves for what was cut"),
        ({"recovery_teacher": str(llama_folder), "recovery_compensation": "ridge"}, "solves for what was cut"),
        ({"recovery_keep_adapter": "auto"}, "no name on the Hub"),
    ):
        with pytest.raises(RequestError, match=message):
            IShrinker.from_pretrained(llama_folder).shrink(num_hidden_layers=3, recovery="kl", **changes)


def test_another_cuda_device_is_refused() -> None:
    def run_on(device: str) -> Any:
        return SimpleNamespace(device=torch.device(device))

    check_device(run_on("cpu"))
    check_device(run_on("cuda:0"))
    with pytest.raises(RequestError, match="not on cuda:1; set CUDA_VISIBLE_DEVICES=1"):
        check_device(run_on("cuda:1"))


def test_a_refused_request_makes_room_for_the_next(
    small: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags, "--no-evaluate"]
    assert recover(small, tmp_path / "out", words, "--recovery-lora-targets", "q_prj") == 2
    assert not any(tmp_path.iterdir())
    assert recover(small, tmp_path / "out", words, "--recovery-lora-targets", "q_proj") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_output_may_not_hold_the_model(small: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert recover(small, small, [*flags, "--overwrite"]) == 2
    assert "is the input" in capsys.readouterr().err
    assert (small / "model.safetensors").is_file()
