"""`ishrink evaluate` of a model that has a part of its base's tokens."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.cli.program import main
from optimum_ishrink.evaluation import measure_quality
from optimum_ishrink.evaluation.stage import Evaluation
from optimum_ishrink.report.report import Report
from tests.helpers.tiny import edit_json, tiny_config, tiny_model
from tests.helpers.trimmed import TEXTS, byte_level_tokenizer, save_cut_rows, trim

PADDING = 5


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, the same with half of its longer tokens, and a text."""
    monkeypatch.setenv("ISHRINK_CACHE", str(tmp_path / "cache"))
    tokenizer = byte_level_tokenizer()
    save(tmp_path / "base", tokenizer)
    small, rows = trim(tokenizer, lambda token: len(token) % 2 == 0)
    save_cut_rows(tmp_path / "base", tmp_path / "small", rows, small)
    (tmp_path / "words.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    return tmp_path


def save(folder: Path, tokenizer: Any, padding: int = PADDING, **config: Any) -> None:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = tiny_model(tiny_config("llama", vocab_size=len(tokenizer) + padding, **ids, **config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def asked(folder: Path) -> list[str]:
    how = f"--eval-text {folder / 'words.txt'} --eval-samples 12 --eval-length 16 --sample-new-tokens 4"
    how += f" --dtype float32 --device cpu --base {folder / 'base'}"
    return ["evaluate", "--model", str(folder / "small"), *how.split(), "--json"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the texts that run on both models."""
    found: list[str] = []
    original = measure_quality.shared_figures

    def spy(*args: Any) -> Any:
        found.append(args[4])
        return original(*args)

    monkeypatch.setattr(measure_quality, "shared_figures", spy)
    return found


def test_a_model_with_fewer_tokens(
    folder: Path, asked: list[str], ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked) == 0
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if "rows" in line]
    assert re.match(r"small has 2\d\d of the base's 335 rows: on words.txt, KL divergence and agreement are", line)
    report = Report.from_json(json.loads(captured.out))
    assert report.base is not None
    old, new = ({m.metric: m for m in each.quality} for each in (report.base, report.shrunk))
    assert list(old) == ["bits_per_byte", "tokens_per_byte"]
    assert list(new) == [*old, "kl_divergence", "top1_agreement"]
    assert old["tokens_per_byte"].value < new["tokens_per_byte"].value < 1
    assert old["tokens_per_byte"].stderr is None
    assert old["bits_per_byte"].settings["bytes"] == new["bits_per_byte"].settings["bytes"]
    for name in ("kl_divergence", "top1_agreement"):
        assert new[name].carried
        assert 0.3 < (new[name].shared or 0) < 1
        assert new[name].n == 12
        assert new[name].stderr is not None
    assert new["kl_divergence"].value > 0
    assert {c.metric for c in report.comparisons} == {"bits_per_byte", "tokens_per_byte"}
    assert len(report.samples) == 3
    assert ran == ["words.txt"]
    assert main(asked) == 0
    assert ran == ["words.txt"]
    again = capsys.readouterr()
    assert "words.txt (model): read from the cache" in again.err
    assert json.loads(again.out) == json.loads(captured.out)
    # Another base is another measurement, also where it has the same tokens.
    save(folder / "base", byte_level_tokenizer(), rms_norm_eps=1e-3)
    assert main(asked) == 0
    assert len(ran) == 2
    assert main([each for each in asked if each != "--json"]) == 0
    shown = capsys.readouterr().out
    assert "carried" in shown
    assert "tokens per byte" in shown


@pytest.mark.parametrize("change", ["fewer padding rows", "renumbered"])
def test_where_nothing_was_removed_the_figures_are_the_ordinary_ones(
    change: str, folder: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = byte_level_tokenizer()
    for name, padding in (("base", 5), ("small", 2 if change == "fewer padding rows" else 5)):
        save(folder / name, tokenizer, padding)
    if change == "renumbered":
        path = folder / "small" / "tokenizer.json"
        model = json.loads(path.read_text())["model"]
        vocab = model["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
        edit_json(path, model=model)
    assert main(asked) == 0
    captured = capsys.readouterr()
    assert "left out" not in captured.err
    report = Report.from_json(json.loads(captured.out))
    assert report.base is not None
    assert [m.metric for m in report.base.quality] == ["perplexity", "bits_per_byte"]
    found = {m.metric: m for m in report.shrunk.quality}
    assert list(found) == ["perplexity", "bits_per_byte", "kl_divergence", "top1_agreement"]
    assert "carried" not in found["kl_divergence"].settings
    assert {c.metric for c in report.comparisons} == {"perplexity", "bits_per_byte"}


def test_a_checkpoint_is_compared_with_the_source_that_it_was_cut_from(folder: Path) -> None:
    config = IShrinkConfig(
        eval_text=[str(folder / "words.txt")],
        eval_samples=4,
        eval_length=16,
        dtype="float32",
        device="cpu",
        benchmark=False,
        sample_new_tokens=0,
    )
    evaluation = Evaluation(Session(open_source(str(folder / "base")), config), config)
    divergence, agreement = evaluation.measure_divergence(folder / "small", name="small")
    assert (divergence.metric, agreement.metric) == ("kl_divergence", "top1_agreement")
    assert divergence.carried
    assert math.isfinite(divergence.value)
    report = evaluation.compare_checkpoint(folder / "small", name="small")
    assert {m.metric: m for m in report.shrunk.quality}["kl_divergence"].value == divergence.value
    # From the other side the windows are the same: they are the base's.
    other = Evaluation(Session(open_source(str(folder / "small")), config), config)
    other.check(open_source(str(folder / "small")), open_source(str(folder / "base")))
    assert other.measure_source(open_source(str(folder / "base"))).shrunk.quality == report.shrunk.quality


def test_what_cannot_be_measured_is_refused_before_long_work(
    folder: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # 100 windows of the model's tokens are there; of the base's, there are fewer.
    assert main([*asked, "--eval-samples", "64"]) != 0
    assert "were requested: give more text" in capsys.readouterr().err
    edit_json(folder / "base" / "config.json", max_position_embeddings=15)
    assert main(asked) != 0
    assert "eval_length=16 is more than the 15 positions of base" in capsys.readouterr().err


def test_text_that_one_tokenizer_has_no_token_for(
    folder: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "ö": 6}
    for name in ("base", "small"):
        tokens = dict(list(vocab.items())[: 7 if name == "base" else 6])
        tokenizer = Tokenizer(models.BPE(tokens, [], unk_token="<unk>"))
        tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>"])
        special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        save(folder / name, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special), 0)
    (folder / "words.txt").write_text("abaaöbab" * 60, encoding="utf-8")
    assert main(asked) == 0
    captured = capsys.readouterr()
    assert "words.txt has text that one of the tokenizers has no token for: perplexity, KL divergence" in captured.err
    report = Report.from_json(json.loads(captured.out))
    assert [m.metric for m in report.shrunk.quality] == ["bits_per_byte"]
