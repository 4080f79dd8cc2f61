"""`ishrink evaluate` from the command line: resuming, cached results, and failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import DataError
from optimum_ishrink.evaluation import measure_quality
from optimum_ishrink.evaluation.evaluated_model import EvaluatedModel
from optimum_ishrink.evaluation.inputs import EvaluationInputs
from optimum_ishrink.report.report import Report
from tests.helpers.beginning import beginning_tokenizer
from tests.helpers.local_tasks import add_group, add_task
from tests.helpers.tiny import edit_json, save_tiny, tiny_config, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, three tasks, and a separate cache."""
    monkeypatch.setenv("ISHRINK_CACHE", str(tmp_path / "cache"))
    for name, seed in (("base", 0), ("small", 1)):
        save_tiny(tmp_path / name, tiny_config("llama"), seed=seed)
    for name in ("one", "two", "three"):
        add_task(tmp_path, name, rows=6)
    return tmp_path


@pytest.fixture
def asked(folder: Path, other_text: Path) -> list[str]:
    how = f"--eval-text {other_text} --eval-samples 3 --eval-length 16 --sample-new-tokens 4"
    how += " --dtype float32 --device cpu"
    return ["evaluate", "--model", str(folder / "small"), "--include-path", str(folder), *how.split(), "--json"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tasks and texts that run on a model."""
    found: list[str] = []
    for function, name in (("run_task", lambda *a, **k: a[1]), ("window_figures", lambda *a, **k: a[3])):
        original = getattr(measure_quality, function)

        def spy(*args: Any, _original: Any = original, _name: Any = name, **kwargs: Any) -> Any:
            found.append(_name(*args, **kwargs))
            return _original(*args, **kwargs)

        monkeypatch.setattr(measure_quality, function, spy)
    return found


def test_everything_is_measured_on_both(folder: Path, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*asked, "--base", str(folder / "base"), "--tasks", "one,two", "--num-fewshot", "1"]) == 0
    report = Report.from_json(json.loads(capsys.readouterr().out))
    assert report.base is not None
    base, shrunk = ({(m.metric, m.dataset) for m in each.quality} for each in (report.base, report.shrunk))
    assert shrunk - base == {("kl_divergence", "other.txt"), ("top1_agreement", "other.txt")}
    compared = {(c.metric, c.dataset): c for c in report.comparisons}
    assert set(compared) == base
    for old, new in report.pairs("quality"):
        if old is not None:
            comparison = report.comparison(new)
            assert comparison is not None
            assert comparison.difference == pytest.approx(new.value - old.value)
            assert comparison.n == new.n == old.n
    task = next(m for m in report.shrunk.quality if m.dataset == "one")
    assert task.settings == {
        "num_fewshot": 1,
        "task_version": 1.0,
        "filter": "none",
        "seed": 0,
        "batch_size": 4,
    }
    assert len(report.samples) == 3
    assert all(sample.base is not None and sample.settings["max_new_tokens"] == 4 for sample in report.samples)
    assert report.failures == ()
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_an_interrupted_run_resumes_at_the_first_missing_result(
    folder: Path,
    asked: list[str],
    ran: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked += ["--base", str(folder / "base"), "--tasks", "one,two,three"]
    with monkeypatch.context() as patch:
        original = measure_quality.run_task

        def interrupted(loaded: Any, name: str, *args: Any, **kwargs: Any) -> Any:
            if name == "two":
                raise KeyboardInterrupt
            return original(loaded, name, *args, **kwargs)

        patch.setattr(measure_quality, "run_task", interrupted)
        assert main(asked) == 130
    assert "the same command resumes at the first text or task that is not measured yet" in capsys.readouterr().err
    assert ran == ["other.txt", "one", "one"]
    ran.clear()
    assert main(asked) == 0
    assert ran == ["two", "two", "three", "three"]
    captured = capsys.readouterr()
    assert "one (base): read from the cache" in captured.err
    assert "other.txt (model): read from the cache" in captured.err
    ran.clear()
    assert main([*asked, "--no-result-cache"]) == 0
    assert ran == ["other.txt", "one", "one", "two", "two", "three", "three"]
    uncached = capsys.readouterr()
    assert "cache" not in uncached.err
    assert json.loads(uncached.out) == json.loads(captured.out)


def test_a_base_is_measured_once_for_many_models(folder: Path, asked: list[str], ran: list[str]) -> None:
    save_tiny(folder / "third", tiny_config("llama"), seed=2)
    asked += ["--base", str(folder / "base"), "--tasks", "one"]
    assert main(asked) == 0
    ran.clear()
    asked[2] = str(folder / "third")
    assert main(asked) == 0
    assert ran == ["other.txt", "one"]  # the text runs through both at once, which divergence needs
    # Another seed, other data or another base is another measurement.
    changes: list[tuple[Callable[[], Any], list[str]]] = [
        (lambda: asked.extend(["--seed", "1"]), ["one", "one"]),
        (lambda: add_task(folder, "one", rows=7), ["one", "one"]),
        (lambda: save_tiny(folder / "base", tiny_config("llama"), seed=5), ["other.txt", "one"]),
    ]
    for change, expected in changes:
        change()
        ran.clear()
        assert main(asked) == 0
        assert ran == expected


def test_no_result_cache_writes_nothing(folder: Path, asked: list[str]) -> None:
    assert main([*asked, "--tasks", "one", "--no-result-cache"]) == 0
    assert not (folder / "cache").exists()


def test_a_task_without_its_data_does_not_stop_the_others(
    folder: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    add_group(folder, "both", ["two", "three"])
    (folder / "two.jsonl").unlink()
    assert main([*asked, "--base", str(folder / "base"), "--tasks", "both,one"]) == 1
    captured = capsys.readouterr()
    report = Report.from_json(json.loads(captured.out))
    assert {m.dataset for m in report.shrunk.quality} == {"other.txt", "one"}
    assert [failure.dataset for failure in report.failures] == ["both"]
    last = captured.err.splitlines()[-1]
    assert last.startswith("ishrink evaluate: incomplete: both cannot get its data")
    assert "--include-path" in last
    assert str(folder) not in captured.out


def test_a_failing_task_of_a_group_does_not_stop_the_others(
    folder: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    add_group(folder, "both", ["two", "three"])
    text = (folder / "two.yaml").read_text()
    (folder / "two.yaml").write_text(text.replace("{{answer}}", '{{answer // (question != "two 3?")}}'))
    assert main([*asked, "--base", str(folder / "base"), "--tasks", "both"]) == 1
    report = Report.from_json(json.loads(capsys.readouterr().out))
    assert {m.dataset for m in report.shrunk.quality} == {"other.txt", "three"}
    assert [failure.dataset for failure in report.failures] == ["two"]
    assert "two failed (ZeroDivisionError" in report.failures[0].reason


def test_a_base_with_another_tokenizer_has_bits_per_byte_only(
    folder: Path, asked: list[str], ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "small" / "tokenizer.json"
    vocab = json.loads(path.read_text())["model"]["vocab"]
    edit_json(path, model={**json.loads(path.read_text())["model"], "vocab": {**vocab, "~~": 259}})
    asked += ["--base", str(folder / "base"), "--tasks", "one"]
    assert main(asked) == 0
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if "tokenizer" in line]
    assert line.startswith("the base has another tokenizer (token '~~' has id None there and 259 here)")
    assert line.endswith("are left out; bits per byte is measured for both")
    report = Report.from_json(json.loads(captured.out))
    assert report.base is not None
    for each in (report.base, report.shrunk):
        assert [m.metric for m in each.quality if m.dataset == "other.txt"] == ["bits_per_byte"]
    assert {(c.metric, c.dataset) for c in report.comparisons} >= {("bits_per_byte", "other.txt"), ("acc", "one")}
    # The model's own figure does not depend on what it is compared with.
    assert main(asked[: asked.index("--base")]) == 0
    alone = Report.from_json(json.loads(capsys.readouterr().out))
    values = [m.value for each in (report, alone) for m in each.shrunk.quality if m.metric == "bits_per_byte"]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_a_tokenizer_without_text_offsets_cannot_be_compared_with_another(folder: Path, other_text: Path) -> None:
    class Slow:
        is_fast = False
        eos_token_id = 2

        def __init__(self, tokenizer: PreTrainedTokenizerFast, extra: str = "") -> None:
            self.tokenizer, self.extra = tokenizer, extra

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.tokenizer(*args, **kwargs)

        def get_vocab(self) -> dict[str, int]:
            return {**self.tokenizer.get_vocab(), **({self.extra: 999} if self.extra else {})}

    config = IShrinkConfig(eval_text=[str(other_text)], eval_samples=2, eval_length=8, dtype="float32", device="cpu")
    session = Session(open_source(folder / "small"), config)
    session.__dict__["tokenizer"] = Slow(tiny_tokenizer())
    inputs = EvaluationInputs(config, session)
    evaluated = EvaluatedModel(session.source, session, config, "model")
    evaluated.__dict__["tokenizer"] = session.tokenizer
    alone = measure_quality.measure_texts(inputs, evaluated, None)
    assert [m.metric for m in alone.shrunk] == ["perplexity"]
    base = EvaluatedModel(open_source(folder / "base"), session, config, "base")
    base.__dict__["tokenizer"] = Slow(tiny_tokenizer(), "more")
    with pytest.raises(DataError, match="does not map tokens to text"):
        measure_quality.measure_texts(inputs, evaluated, base)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty; name one that holds text"), ("a", "gives 2 tokens, 0 windows of 16; 3 were requested")],
)
def test_a_text_that_is_too_short_is_one_line(
    folder: Path, asked: list[str], text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "short.txt").write_text(text)
    assert main([*asked, "--eval-text", str(folder / "short.txt")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_samples_can_be_left_out(folder: Path, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*asked, "--sample-new-tokens", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == []
    assert main([*asked]) == 0
    assert [sample["base"] for sample in json.loads(capsys.readouterr().out)["samples"]] == [None] * 3


def test_the_tables_show_the_retained_share(
    folder: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked.remove("--json")
    assert main([*asked, "--base", str(folder / "base"), "--tasks", "one"]) == 0
    out = capsys.readouterr().out
    assert "Retained of the base" in out
    assert "acc, 0-shot" in out
    (row,) = [line for line in out.splitlines() if line.split()[:2] == ["acc", "one"]]
    assert "too few questions to tell" in row
    assert out.count("Prompt: ") == 3
    assert "added to" not in out


def test_the_report_says_what_windows_begin_with_and_no_cache_mixes_them(
    folder: Path, asked: list[str], ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def settings(*more: str) -> list[Any]:
        assert main([*asked, *more]) == 0
        report = Report.from_json(json.loads(capsys.readouterr().out))
        both = [report.shrunk, *([report.base] if report.base else [])]
        return [m.settings.get("begins_with", "text") for each in both for m in each.quality]

    assert {*settings()} == {"text"}
    beginning_tokenizer().save_pretrained(folder / "small")
    assert {*settings()} == {"<s>"}
    assert ran == ["other.txt", "other.txt"]
    # A base with other tokens is measured behind its own, too.
    base = folder / "base" / "tokenizer.json"
    vocab = json.loads(base.read_text())["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    edit_json(base, model={**json.loads(base.read_text())["model"], "vocab": vocab})
    assert {*settings("--base", str(folder / "base"))} == {"what each tokenizer begins a text with"}
    begun = beginning_tokenizer().backend_tokenizer.to_str()
    edit_json(base, post_processor=json.loads(begun)["post_processor"])
    assert {*settings("--base", str(folder / "base"))} == {"<s>"}
