"""Every verb checks the model's limits before the work, and reports a model whose numbers are not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink.cli.program import main
from tests.helpers.tiny import edit_json, save_tiny, tiny_config, tiny_model, tiny_tokenizer

CUT = ["--num-hidden-layers", "3"]
SMALL_TEXT = ["--calibration-samples", "8", "--calibration-length", "32", "--importance-samples", "4"]
SMALL_EVAL = ["--eval-samples", "3", "--eval-length", "32", "--sample-new-tokens", "0"]
QUIET = ["--no-evaluate", "--no-benchmark"]
FAST = ["--importance", "l2-norm", "--layer-importance", "l2-norm", "--compensation", "none"]
RECOVER = ["--recovery-tokens", "3000", "--recovery-length", "32", "--recovery-batch-size", "4"]
COMMON = ["--device", "cpu", "--dtype", "float32"]


def folder_of(folder: Path, kind: str = "gpt2", **changes: Any) -> str:
    return str(save_tiny(folder, tiny_config(kind, **changes)))


def damaged(folder: Path, value: float = math.nan, part: str = "model.layers.2.mlp.down_proj.weight") -> str:
    model = tiny_model(tiny_config("llama"))
    with torch.no_grad():
        model.get_parameter(part).view(-1)[0] = value
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def larger_tokenizer(folder: Path) -> str:
    """A model without an embedding for the token <|call|>, id 259."""
    save_tiny(folder, tiny_config("llama", vocab_size=259))
    tokenizer = type(tiny_tokenizer()).from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|call|>"]})
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def calls(tmp_path: Path) -> str:
    path = tmp_path / "calls.txt"
    path.write_text("The porter takes <|call|> after noon.\n" * 300)
    return str(path)


def refusal(words: list[Any], capsys: pytest.CaptureFixture[str], verb: str = "") -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith(f"ishrink {words[0]}: error: ")]
    assert len(lines) == 1 and error.splitlines()[-1] == lines[0], error
    return lines[0]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_windows_longer_than_the_positions(
    kind: str, tmp_path: Path, text_file: Path, other_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder_of(tmp_path / "model", kind, max_position_embeddings=40, n_positions=40)
    long = folder_of(tmp_path / "long", kind)
    text = ["--calibration", text_file]
    cases = {
        "calibration_length=41": [
            ["plan", "--model", model, *CUT, *text, "--calibration-length", 41],
            ["shrink", "--model", model, *CUT, *text, "--calibration-length", 41, "--output", tmp_path / "out"],
            ["shrink", "--model", model, *CUT, "--calibration-length", 41, "--output", tmp_path / "out"],
        ],
        "eval_length=41": [
            ["evaluate", "--model", model, "--eval-text", other_text, "--eval-length", 41],
            ["evaluate", "--model", long, "--base", model, "--eval-text", other_text, "--eval-length", 41],
            [
                "shrink",
                "--model",
                model,
                *CUT,
                *FAST,
                "--eval-text",
                other_text,
                "--eval-length",
                41,
                "--no-benchmark",
                "--output",
                tmp_path / "out",
            ],
        ],
        "recovery_length=41": [
            [
                "recover",
                "--model",
                model,
                "--recovery",
                "ce",
                "--recovery-data",
                text_file,
                "--recovery-length",
                41,
                *QUIET,
                "--output",
                tmp_path / "out",
            ],
            [
                "recover",
                "--model",
                long,
                "--teacher",
                model,
                "--recovery-data",
                text_file,
                "--recovery-length",
                41,
                *QUIET,
                "--output",
                tmp_path / "out",
            ],
            [
                "shrink",
                "--model",
                model,
                *CUT,
                *FAST,
                "--recovery",
                "kl",
                "--recovery-data",
                text_file,
                "--recovery-length",
                41,
                *QUIET,
                "--output",
                tmp_path / "out",
            ],
        ],
        "analysis_length=41": [
            [
                "analyze",
                "--model",
                model,
                *text,
                "--calibration-length",
                32,
                "--analysis-length",
                41,
                "--output",
                tmp_path / "out",
            ],
        ],
        "sample_new_tokens=20": [
            ["evaluate", "--model", model, "--eval-text", other_text, *SMALL_EVAL[:4], "--sample-new-tokens", 20],
        ],
    }
    if kind == "gpt2":
        cases["benchmark_prompt_length=36"] = [
            ["benchmark", "--model", model, "--benchmark-prompt-length", 36, "--benchmark-new-tokens", 6],
            ["benchmark", "--model", long, "--base", model, "--benchmark-prompt-length", 36],
        ]
    for named, commands in cases.items():
        for words in commands:
            error = refusal([*words, *COMMON], capsys)
            assert named in error and "40 positions" in error, (words, error)
    assert not (tmp_path / "out").exists()


def test_lengths_that_nothing_reads_are_not_checked(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model", "gpt2", max_position_embeddings=40, n_positions=40)
    words = ["shrink", "--model", model, *CUT, *FAST, *QUIET, *COMMON, "--output", str(tmp_path / "out")]
    assert main(words) == 0


def test_a_token_without_an_embedding_is_named_by_every_verb(
    tmp_path: Path, calls: str, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = larger_tokenizer(tmp_path / "model"), ["--output", tmp_path / "out"]
    recover = [*RECOVER, "--recovery-data", calls, *QUIET, *out]
    for words in (
        ["plan", "--model", model, *CUT, *SMALL_TEXT, "--calibration", calls],
        ["shrink", "--model", model, *CUT, *SMALL_TEXT, "--calibration", calls, *QUIET, *out],
        ["evaluate", "--model", model, "--eval-text", calls, *SMALL_EVAL],
        [
            "analyze",
            "--model",
            model,
            *SMALL_TEXT,
            "--calibration",
            text_file,
            "--analysis-text",
            calls,
            "--analysis-length",
            32,
            *out,
        ],
        ["recover", "--model", model, "--recovery", "ce", *recover],
        ["recover", "--model", model, "--teacher", model, *recover],
        ["shrink", "--model", model, *CUT, *FAST, "--recovery", "kl", *recover],
    ):
        error = refusal([*words, *COMMON], capsys)
        assert "calls.txt has the token '<|call|>' with the id 259" in error, error
        assert "model has 259 embeddings" in error
    assert not (tmp_path / "out").exists()
    assert main(["evaluate", "--model", model, "--eval-text", str(text_file), *SMALL_EVAL, *COMMON]) == 0


def test_the_start_of_a_text_without_an_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder_of(tmp_path / "model", "llama", vocab_size=259)
    tokenizer = type(tiny_tokenizer()).from_pretrained(model)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.save_pretrained(model)
    error = refusal(["plan", "--model", model, *CUT, *SMALL_TEXT, *COMMON], capsys)
    assert "the start of a text has the beginning-of-text token '<|begin|>' with the id 259" in error


def test_a_padding_token_outside_the_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder_of(tmp_path / "model", "llama")
    edit_json(Path(model) / "config.json", pad_token_id=300)
    error = refusal(["plan", "--model", model, *CUT, *FAST], capsys)
    assert "config.json names pad_token_id=300, but the model has 300 embeddings, ids 0 to 299" in error


@pytest.mark.parametrize(
    ("value", "kind"),
    [(math.nan, "NaN"), pytest.param(math.inf, "infinite values", marks=pytest.mark.slow)],
)
def test_a_damaged_model_is_reported_by_every_verb(
    value: float, kind: str, tmp_path: Path, text_file: Path, other_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = damaged(tmp_path / "broken", value), ["--output", tmp_path / "out"]
    whole = folder_of(tmp_path / "whole", "llama")
    text = [*SMALL_TEXT, "--calibration", text_file]
    recover = [*RECOVER, "--recovery-data", text_file, *QUIET, *out]
    for words in (
        ["plan", "--model", model, *CUT, *text],
        ["plan", "--model", model, *CUT, *SMALL_TEXT],
        ["plan", "--model", model, *CUT, *text, "--layer-importance", "perplexity", "--layer-selection", "greedy"],
        ["plan", "--model", model, "--intermediate-size", 16, *FAST],
        ["shrink", "--model", model, "--num-hidden-layers", 3, *FAST[:4], *text, *QUIET, *out],
        ["evaluate", "--model", model, "--eval-text", other_text, *SMALL_EVAL],
        ["evaluate", "--model", whole, "--base", model, "--eval-text", other_text, *SMALL_EVAL],
        ["analyze", "--model", model, *text, "--analysis-length", 32, *out],
        ["recover", "--model", model, "--recovery", "ce", *recover],
        ["recover", "--model", whole, "--teacher", model, *recover],
        ["benchmark", "--model", model, "--benchmark-prompt-length", 8, "--benchmark-rounds", 1],
    ):
        error = refusal([*words, *COMMON], capsys)
        assert kind in error or "not finite" in error, (words, error)
        assert any(name in error for name in ("broken", "layer 2", "layers.2", "text", "model to recover")), error
    assert not (tmp_path / "out").exists()


def test_samples_of_a_damaged_model(tmp_path: Path, other_text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row of the embedding that only the prompts read: the text is measured, the samples are refused."""
    model = tiny_model(tiny_config("llama"))
    question = tiny_tokenizer()("?")["input_ids"][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[question] = math.nan
    model.save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    words = ["evaluate", "--model", tmp_path / "m", "--eval-text", other_text, *SMALL_EVAL[:4], *COMMON]
    error = refusal([*words, "--sample-new-tokens", 2], capsys)
    assert "m gives NaN on the prompt of a sample, first in model.embed_tokens, whose weights hold NaN" in error


def test_merging_heads_of_a_damaged_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = damaged(tmp_path / "broken", part="model.layers.1.self_attn.k_proj.weight")
    words = ["plan", "--model", model, "--num-key-value-heads", 2, "--merge-key-value-heads", *FAST]
    assert "key and value projections of layer 1 are not finite: they hold NaN" in refusal(words, capsys)


def test_an_overflow_is_left_out_of_valid_json(
    tmp_path: Path, other_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(tiny_config("llama"))
    with torch.no_grad():
        model.lm_head.weight.mul_(3000)
    model.save_pretrained(tmp_path / "sharp")
    tiny_tokenizer().save_pretrained(tmp_path / "sharp")
    whole = folder_of(tmp_path / "whole", "llama")
    words = ["evaluate", "--model", str(tmp_path / "sharp"), "--base", whole, "--eval-text", str(other_text)]
    for more in ([], ["--json"]):
        capsys.readouterr()
        assert main([*words, *SMALL_EVAL, *COMMON, *more]) == 0
    shown = capsys.readouterr()
    assert "perplexity is too large for a number, and is left out" in shown.err

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    report = json.loads(shown.out, parse_constant=refuse)
    metrics = [each["metric"] for each in report["shrunk"]["quality"]]
    assert metrics == ["bits_per_byte", "kl_divergence", "top1_agreement"]
    assert [each["metric"] for each in report["comparisons"]] == ["bits_per_byte"]
    assert "perplexity" in [each["metric"] for each in report["base"]["quality"]]


def test_a_base_with_other_tokens_is_checked_window_by_window(
    tmp_path: Path, calls: str, other_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder_of(tmp_path / "model", "llama")
    other = larger_tokenizer(tmp_path / "other")
    words = ["evaluate", "--model", model, "--base", other, "--eval-text", calls, *SMALL_EVAL, *COMMON]
    assert "has the token '<|call|>' with the id 259, but other has 259 embeddings" in refusal(words, capsys)
    short = folder_of(tmp_path / "short", "llama", max_position_embeddings=20)
    tokenizer = type(tiny_tokenizer()).from_pretrained(short)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|call|>"]})
    tokenizer.save_pretrained(short)
    words = ["evaluate", "--model", model, "--base", short, "--eval-text", other_text, *SMALL_EVAL, *COMMON]
    assert "eval_length=32 is more than the 20 positions of short; use at most 20" in refusal(words, capsys)
