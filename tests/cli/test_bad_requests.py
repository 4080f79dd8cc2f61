"""Every error that a user can cause is one line and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink.cli.program import main
from optimum_ishrink.report.report import Report
from tests.helpers.tiny import edit_json, save_tiny, tiny_config


def bad(message: str, *arguments: str) -> Any:
    return pytest.param(arguments, message, id=message[:40])


BAD = [
    bad("unknown argument '--num-layers' (did you mean", "--num-layers", "3"),
    bad("unknown importance 'tailor' (did you mean 'taylor'?)", "--importance", "tailor"),
    bad("num_hidden_layers=9 is not between 1 and the model's 4; nearest", "--num-hidden-layers", "9"),
    bad("nearest num_key_value_heads: 2 or 4", "--num-key-value-heads", "3"),
    bad("no shape lies within 0.5% of", "--target", "params=-99%"),
    bad("not of the form", "--target", "15%"),
    bad("say what to shrink"),
    bad("no.txt does not exist", "--target", "params=-15%", "--calibration", "no.txt"),
    bad(
        "is given for calibration and for evaluation",
        "--target",
        "params=-15%",
        "--calibration",
        "TEXT",
        "--eval-text",
        "TEXT",
    ),
    bad("eval_text cannot be 'self'", "--target", "params=-15%", "--eval-text", "self"),
    bad("unknown dtype 'int4'", "--target", "params=-15%", "--dtype", "int4"),
    bad("is not a folder", "--target", "params=-15%", "--tasks", "a", "--include-path", "nowhere"),
    bad("recipe no.yaml does not exist", "--config", "no.yaml"),
    bad("invalid int value: 'many'", "--num-hidden-layers", "many"),
    bad("vocab_size=256 is fewer than the 300 rows that have to stay: 256 bytes, 3 ", "--vocab-size", "256"),
    bad("vocab_size=400 is not between 1 and the model's 300", "--vocab-size", "400"),
    bad("vocab_multiple must be a whole number of at least 1", "--vocab-size", "256", "--vocab-multiple", "0"),
    bad("unknown language with word frequencies 'xx'", "--vocab-size", "256", "--vocab-languages", "xx"),
    bad("vocab_languages cannot be 'none' and a language", "--target", "params=-15%", "--vocab-languages", "none,en"),
    bad("text file no.txt does not exist", "--vocab-size", "256", "--vocab-keep", "no.txt"),
    bad("text file no.txt does not exist", "--vocab-size", "256", "--vocab-text", "no.txt"),
    bad("vocab_text says which tokens stay, and the vocabulary", "--num-hidden-layers", "3", "--vocab-text", "TEXT"),
    bad("vocab_keep says which tokens stay, and the vocabulary", "--intermediate-size", "16", "--vocab-keep", "TEXT"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_requests_get_one_line_and_leave_nothing(
    arguments: tuple[str, ...],
    message: str,
    llama_folder: Path,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(text_file) if word == "TEXT" else word for word in arguments]
    try:
        status = main(["shrink", "--model", str(llama_folder), "--output", str(tmp_path / "out"), *words])
    except SystemExit as leaving:  # argparse leaves by itself
        status = int(leaving.code or 0)
    captured = capsys.readouterr()
    assert status == 2
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not any(tmp_path.iterdir())


def test_a_model_and_an_output_have_to_be_named(llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shrink", "--output", "x"]) == 2
    assert "name the model" in capsys.readouterr().err
    assert main(["shrink", "--model", str(llama_folder)]) == 2
    assert "name the output folder with --output" in capsys.readouterr().err


def test_an_output_folder_with_something_in_it(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert main(["shrink", "--model", str(llama_folder), "--output", str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_corrupt_file_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "model", tiny_config("llama"))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    capsys.readouterr()
    assert main(["shrink", "--model", str(folder), "--output", str(tmp_path / "out"), "--target", "params=-15%"]) == 2
    assert "not a complete safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_nothing(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("optimum_ishrink.evaluation.stage.Evaluation.compare_checkpoint", interrupt)
    arguments = ["--num-hidden-layers", "3", "--layer-importance", "l2-norm", "--compensation", "none"]
    assert main(["shrink", "--model", str(llama_folder), "--output", str(tmp_path / "out"), *arguments]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried to allocate 2.00 GiB.", "DefaultCPUAllocator: can't allocate memory"]
)
def test_a_device_without_memory_is_one_line(
    message: str,
    llama_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr("optimum_ishrink.evaluation.stage.Evaluation.compare_checkpoint", fail)
    command = ["shrink", "--model", str(llama_folder), "--output", str(tmp_path / "out"), "--num-hidden-layers", "3"]
    command += ["--layer-importance", "l2-norm", "--compensation", "none"]
    assert main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"ishrink shrink: error: {message}; set fewer windows at once (--batch-size 1)")
    assert not any(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("optimum_ishrink.core.micro_batch.ran_out", lambda error: False)
        with pytest.raises(RuntimeError):  # what nobody expected keeps its traceback
            main(command)


def test_models_without_a_shared_vocabulary(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny(tmp_path / "other", tiny_config("llama", vocab_size=310))
    path = llama_folder / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    model["vocab"] = {("~~" if token == "a" else token): row for token, row in model["vocab"].items()}
    edit_json(other / "tokenizer.json", model=model)
    how = ["--eval-samples", "2", "--eval-length", "8", "--sample-new-tokens", "0", "--device", "cpu"]
    assert main(["evaluate", "--model", str(llama_folder), "--base", str(other), *how, "--json"]) == 0
    captured = capsys.readouterr()
    assert "the base has another tokenizer (token 'a' has id None there and " in captured.err
    assert "): perplexity, KL divergence" in captured.err
    report = Report.from_json(json.loads(captured.out))
    assert report.base is not None
    assert [m.metric for m in report.base.quality] == [m.metric for m in report.shrunk.quality] == ["bits_per_byte"]
    assert main(["evaluate", "--model", str(llama_folder), "--eval-text", "self"]) == 2
    assert "cannot be 'self'" in capsys.readouterr().err


def test_cuda_that_is_not_there(llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["evaluate", "--model", str(llama_folder), "--device", "cuda"]) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err
