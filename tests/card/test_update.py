"""Later measurements added to the report of an output folder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from optimum_ishrink import IShrinker
from optimum_ishrink.card.update import can_update, update_report
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.cli.program import main
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.errors import OutputError, SourceError
from optimum_ishrink.report.measurement import Comparison, Failure, Measurement, Sample
from optimum_ishrink.report.merge import merge_reports
from optimum_ishrink.report.report import ModelReport, Report
from tests.helpers.local_tasks import add_task
from tests.helpers.records import make_environment
from tests.helpers.tiny import edit_json, save_tiny, tiny_config


@pytest.fixture(scope="module")
def made(llama_folder: Path, other_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder that tests copy."""
    target = tmp_path_factory.mktemp("out") / "small"
    IShrinker.from_pretrained(llama_folder).shrink(
        num_hidden_layers=3,
        layer_importance="l2-norm",
        compensation="none",
        eval_text=[str(other_text)],
        eval_samples=3,
        eval_length=16,
        sample_new_tokens=2,
        benchmark=False,
        base_model="org/tiny",
        dtype="float32",
        device="cpu",
        save_directory=target,
    )
    return target


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "small")


def measure(output: Path, base: Path, other_text: Path, *more: str, verb: str = "evaluate") -> int:
    arguments = [verb, "--model", str(output), "--base", str(base), "--dtype", "float32", "--device", "cpu", *more]
    if verb == "evaluate":
        arguments += ["--eval-text", str(other_text), "--eval-samples", "4", "--eval-length", "16"]
        arguments += ["--sample-new-tokens", "3"]
    return main(arguments)


def report_of(folder: Path) -> Report:
    return Report.from_json(read_json(folder / "ishrink_report.json"))


def test_evaluate_and_benchmark_add_to_the_report_and_the_card(
    output: Path, llama_folder: Path, other_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = report_of(output)
    add_task(tmp_path, "quiz", rows=6)
    tasks = ["--tasks", "quiz", "--include-path", str(tmp_path), "--base-model", "org/tiny"]
    assert measure(output, llama_folder, other_text, *tasks) == 0
    assert f"added to {output / 'ishrink_report.json'} and its card" in capsys.readouterr().err
    after = report_of(output)
    assert before.base is not None and after.base is not None
    for old, new in ((before.base, after.base), (before.shrunk, after.shrunk)):
        assert {m.dataset for m in new.quality} == {"other.txt", "quiz"}
        text = [m for m in new.quality if m.dataset == "other.txt"]
        assert {m.n for m in text} == {4}  # replaced: there were three windows
        assert [(m.metric, m.dataset) for m in text] == [(m.metric, m.dataset) for m in old.quality]
        assert (new.name, new.params, new.bytes) == (old.name, old.params, old.bytes)
    assert {(c.metric, c.dataset, c.n) for c in after.comparisons} == {
        ("perplexity", "other.txt", 4),
        ("bits_per_byte", "other.txt", 4),
        ("acc", "quiz", 6),
        ("acc_norm", "quiz", 6),
    }
    assert after.samples[0].max_new_tokens == 3
    assert after.environment == before.environment
    assert "quiz" in (output / "README.md").read_text()
    speed = ["--benchmark-prompt-length", "4", "--benchmark-new-tokens", "2", "--benchmark-rounds", "1"]
    assert measure(output, llama_folder, other_text, *speed, "--base-model", "org/tiny", verb="benchmark") == 0
    timed = report_of(output)
    assert timed.shrunk.speed
    assert timed.shrunk.quality == after.shrunk.quality
    assert timed.comparisons == after.comparisons
    assert not list(output.glob(".*"))


def test_updating_the_report_can_be_turned_off(output: Path, llama_folder: Path, other_text: Path) -> None:
    files = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert measure(output, llama_folder, other_text, "--base-model", "org/tiny", "--no-update-report") == 0
    assert (
        main(["evaluate", "--model", str(output), "--device", "cpu", "--eval-samples", "1", "--eval-length", "8"]) == 0
    )
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == files


def test_measurements_against_another_base_are_not_added(
    output: Path, llama_folder: Path, other_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = (output / "ishrink_report.json").read_bytes()
    assert measure(output, llama_folder, other_text) == 0
    errors = capsys.readouterr().err
    assert "is not updated: the plan was made for org/tiny, and the base is named" in errors
    assert "--base-model org/tiny" in errors
    wider = save_tiny(tmp_path / "wider", tiny_config("llama", intermediate_size=32))
    assert measure(output, wider, other_text, "--base-model", "org/tiny") == 0
    assert "is not updated: the base has a different shape" in capsys.readouterr().err
    assert (output / "ishrink_report.json").read_bytes() == report
    edit_json(output / "ishrink_plan.json", revision="a" * 40)
    base = replace(open_source(llama_folder), revision="b" * 40)
    assert not can_update(output, base, "org/tiny")
    assert f"the base is at revision {'b' * 12}, and the plan was made for {'a' * 12}" in capsys.readouterr().err


def test_a_plain_checkpoint_has_no_report_to_update(llama_folder: Path, tmp_path: Path) -> None:
    assert not can_update(save_tiny(tmp_path / "plain", tiny_config("llama")), open_source(llama_folder), None)


def test_an_unreadable_or_unwritable_report_is_an_error_before_measuring(
    output: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_source(llama_folder)
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)
        with pytest.raises(OutputError, match="no permission to write in .*--no-update-report"):
            can_update(output, base, "org/tiny")
    edit_json(output / "ishrink_report.json", schema=99)
    with pytest.raises(SourceError, match="this report has schema 99, this version reads up to 2"):
        can_update(output, base, "org/tiny")


def test_a_full_disk_leaves_the_report_as_it_was(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (output / "ishrink_report.json").read_bytes()
    found = report_of(output)

    def full(self: Path, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="cannot write in .*small: No space left"):
        update_report(output, found)
    assert (output / "ishrink_report.json").read_bytes() == before
    assert not list(output.glob(".*"))


def entry(metric: str, dataset: str, value: float) -> Measurement:
    return Measurement(metric, dataset, value, None, 4, {"seed": 0})


def comparison(metric: str, dataset: str, ratio: float) -> Comparison:
    how = (4, ratio, None, None, 0.0, 0.0, 0.0, True, None, None, None, "too few questions to tell")
    return Comparison(metric, dataset, *how)


def test_reports_are_merged_entry_by_entry() -> None:
    old = Report(
        ModelReport("base", 10, 20, (entry("acc", "a", 0.1), entry("acc", "b", 0.2)), (entry("speed", "s", 1),)),
        ModelReport("small", 5, 10, (entry("acc", "a", 0.3), entry("acc", "b", 0.4)), (entry("speed", "s", 2),)),
        make_environment(),
        (comparison("acc", "a", 3), comparison("acc", "b", 2)),
        (Sample("p", "x", "y"),),
        (Failure("c", "no data"), Failure("d", "no data")),
    )
    new = Report(
        ModelReport("base", 10, 20, (entry("acc", "b", 0.5), entry("acc", "c", 0.6))),
        ModelReport("small", 5, 10, (entry("acc", "b", 0.7), entry("acc", "c", 0.8))),
        make_environment(),
        (comparison("acc", "b", 1.4), comparison("acc", "c", 1.3)),
        (),
        (Failure("e", "no data"),),
    )
    merged = merge_reports(old, new)
    assert merged.base is not None
    assert [(m.dataset, m.value) for m in merged.base.quality] == [("a", 0.1), ("b", 0.5), ("c", 0.6)]
    assert [(m.dataset, m.value) for m in merged.shrunk.quality] == [("a", 0.3), ("b", 0.7), ("c", 0.8)]
    assert merged.shrunk.speed == old.shrunk.speed
    assert [(c.dataset, c.ratio) for c in merged.comparisons] == [("a", 3), ("b", 1.4), ("c", 1.3)]
    assert merged.samples == old.samples
    assert [failure.dataset for failure in merged.failures] == ["d", "e"]
    there = make_environment(threads=9)
    elsewhere = merge_reports(old, replace(new, environment=there))
    assert [m.environment for m in elsewhere.shrunk.quality] == [None, there, there]
    assert elsewhere.environment == make_environment()
    assert merge_reports(replace(old, base=None), new).base == new.base
    assert merge_reports(old, replace(new, base=None)).base == old.base
