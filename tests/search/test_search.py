from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinker
from optimum_ishrink.checkpoint.source import Source
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import OutputError, RequestError, ShapeError, SourceError
from optimum_ishrink.report.search import SearchRecord
from optimum_ishrink.search import candidates, llama_cpp_runtime, making
from optimum_ishrink.search.profile import Profile
from optimum_ishrink.search.search import work_folder
from tests.helpers import made_up_device

QUICK = {
    "calibration_samples": 6,
    "calibration_length": 16,
    "importance_samples": 2,
    "search_samples": 2,
    "search_length": 24,
    "prompt_length": 8,
    "context": 64,
    "timing_rounds": 1,
    "candidates": 2,
    "dtype": "float32",
    "vocab_languages": [],
}


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up_device.install(monkeypatch)


def search(source: Source, output: Path, text: Path, **changes: Any) -> SearchRecord:
    options = {**QUICK, "calibration": [str(text)], **changes}
    return IShrinker(source).search(save_directory=output, **options)


def watch_measurements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the name of every divergence is added that is measured and not read from the store."""
    measured: list[str] = []
    add = candidates.Measuring.divergence

    def watched(self: Any, name: str, *args: Any, **how: Any) -> Any:
        if not self.store.has(name):
            measured.append(name)
        return add(self, name, *args, **how)

    monkeypatch.setattr(candidates.Measuring, "divergence", watched)
    return measured


def test_the_best_model_is_written_with_its_record(base_source: Source, text_file: Path, tmp_path: Path) -> None:
    record = search(base_source, tmp_path / "out", text_file, target="bytes=-35%", quantization=["q8_0", "q4_0"])
    (answer,) = record.answers
    best = record.model_named(answer.best or "")
    assert best.measured is not None and answer.file is not None
    file = tmp_path / "out" / answer.file
    assert file.stat().st_size == best.measured.costs["bytes"] == best.expected.costs["bytes"]
    assert file.stat().st_size <= 0.65 * record.reference["bytes"]
    assert answer.binding == ("bytes",)
    made = [each for each in record.models if each.measured and answer.target in each.keeps]
    assert best.measured.divergence == min(each.measured.divergence for each in made if each.measured)
    for metric in ("decode", "ttft", "memory"):
        assert best.measured.costs[metric] == pytest.approx(best.expected.costs[metric], rel=0.1)
    assert SearchRecord.read(tmp_path / "out") == record
    page = (tmp_path / "out" / "index.html").read_text()
    assert best.name in page and "Pareto-optimal" in page and "http" not in page.replace("http://www.w3.org", "")
    if answer.folder is not None:
        AutoModelForCausalLM.from_pretrained(tmp_path / "out" / answer.folder)
    assert not work_folder(tmp_path / "out").exists()
    assert any("bytes=-35%: " in line for line in record.advice)
    assert len(made_up_device.VERIFIED) == 1


def test_a_search_that_stopped_repeats_no_measurement(
    base_source: Source, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    write = llama_cpp_runtime.write_mixed_file

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(llama_cpp_runtime, "write_mixed_file", stop)
    with pytest.raises(KeyboardInterrupt, match="run the same command again to resume"):
        search(base_source, output, text_file, target="bytes=-30%")
    assert not output.exists()
    stored = (work_folder(output) / "measured.jsonl").read_text().splitlines()
    monkeypatch.setattr(llama_cpp_runtime, "write_mixed_file", write)
    measured = watch_measurements(monkeypatch)
    made = []
    cut = making.run
    monkeypatch.setattr(making, "run", lambda *args, **kwargs: made.append(args[1].output) or cut(*args, **kwargs))
    record = search(base_source, output, text_file, target="bytes=-30%")
    assert record.answers[0].best
    names = {json.loads(line)["name"] for line in stored}
    assert len(names) > 15 and not names & set(measured)
    remade = {f"shape {folder.parent.name}" for folder in made}
    assert not remade & names, "a checkpoint whose measurement is stored is not made again"


@pytest.mark.slow
def test_files_of_16_bits_are_written_of_what_is_rounded_alone(
    base_source: Source, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write = [], llama_cpp_runtime.write_base_file

    def record_path(source: Source, path: Path, pre_tokenizer: str | None = None) -> None:
        written.append(path.name)
        write(source, path, pre_tokenizer)

    monkeypatch.setattr(llama_cpp_runtime, "write_base_file", record_path)
    record = search(base_source, tmp_path / "out", text_file, target="bytes=-35%", quantization=["q8_0", "q4_0"])
    made = sum(not each.unpruned for each in record.models if each.measured)
    assert len(record.levels) > made > 0
    assert written == ["base.gguf", *["exact.gguf"] * made]


def test_another_budget_needs_no_new_measurement_of_types_and_dimensions(
    base_source: Source, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ShapeError, match="nothing that can be made keeps bytes=2kB: the nearest is"):
        search(base_source, tmp_path / "out", text_file, target="bytes=2kB")
    search(base_source, tmp_path / "out", text_file, target="bytes=-20%")
    assert "resuming: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_budget_above_the_model_says_that_nothing_has_to_be_done(
    base_source: Source, text_file: Path, tmp_path: Path
) -> None:
    record = search(base_source, tmp_path / "out", text_file, target="bytes=1GB")
    best = record.model_named(record.answers[0].best or "")
    assert best.unpruned and set(best.types.values()) == {"q8_0"}
    assert "nothing has to be removed" in " ".join(record.advice)


def test_a_profile_stands_for_another_device(base_source: Source, text_file: Path, tmp_path: Path) -> None:
    shrinker = IShrinker(base_source)
    asked = {"prompt_length": 8, "context": 64, "threads": 3}
    found = shrinker.profile(output=tmp_path / "phone.json", timing_rounds=1, **asked)
    assert Profile.read(tmp_path / "phone.json") == found
    assert found.threads == 3 and found.build == "made-up device"
    for metric in ("decode", "ttft", "memory"):
        error = found.costs.errors[metric]
        assert error is not None and error < 0.1
    made_up_device.TIMED.clear()
    how = {"profile": str(tmp_path / "phone.json"), "target": "decode=+10%"}
    record = search(base_source, tmp_path / "out", text_file, **how)
    assert made_up_device.TIMED == []  # the device is elsewhere
    assert record.threads == 3
    for changes, words in (
        ({"threads": 2}, "was measured with 3 threads, not 2"),
        ({"context": 128}, "in a context of 64"),
        ({"quantization": ["q5_1"]}, "has no costs of q5_1"),
    ):
        with pytest.raises(RequestError, match=words):
            search(base_source, tmp_path / "no", text_file, **{**how, **changes})
    data = json.loads((tmp_path / "phone.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**data, "model_type": "qwen2"}))
    with pytest.raises(RequestError, match="another model; make one of this model"):
        search(base_source, tmp_path / "no", text_file, **{**how, "profile": str(tmp_path / "other.json")})
    (tmp_path / "other.json").write_text(json.dumps({**data, "probes": []}))
    with pytest.raises(RequestError, match="has no costs of q8_0"):
        search(base_source, tmp_path / "no", text_file, **{**how, "profile": str(tmp_path / "other.json")})
    (tmp_path / "other.json").write_text(json.dumps({"schema": data["schema"], "probes": []}))
    with pytest.raises(SourceError, match=r"other\.json: this profile lacks build, model"):
        search(base_source, tmp_path / "no", text_file, **{**how, "profile": str(tmp_path / "other.json")})
    assert not work_folder(tmp_path / "no").exists()  # a profile is read before any work


def test_requests_that_cannot_be_met_are_refused_before_any_work(
    base_source: Source, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", "--model", str(base_source.folder), "--calibration", str(text_file)]
    for more, message in (
        (["--target", "bytes=80"], "is not of the form bytes=80MB"),
        (["--target", "bytes=80MB", "--runtime", "onnx"], "llama.cpp"),
        (["--target", "bytes=80MB", "--quantization", "q9_0"], "q9_0"),
        (["--target", "bytes=80MB", "--search-text", str(tmp_path / "none.txt")], "none.txt"),
        (["--target", "bytes=80MB", "--search-length", "100000"], "search_length"),
        (["--target", "bytes=80MB", "--profile", str(tmp_path / "none.json")], "none.json"),
    ):
        assert main([*words, *more, "--output", str(tmp_path / "out")]) == 2, more
        error = capsys.readouterr().err
        assert message in error and error.strip().splitlines()[-1].startswith("ishrink search: error"), (more, error)
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputError, match="not empty"):
        search(base_source, tmp_path / "full", text_file, target="bytes=-10%")
    with pytest.raises(RequestError, match="a search chooses the shape itself; leave out intermediate_size"):
        search(base_source, tmp_path / "out", text_file, target="bytes=-10%", intermediate_size=32)
    with pytest.raises(
        RequestError, match="does not drop experts yet; drop them with `ishrink shrink --num-experts N`"
    ):
        search(base_source, tmp_path / "out", text_file, target="bytes=-10%", prune=["num_experts"])
    with pytest.raises(
        RequestError, match="does not drop experts yet; drop them with `ishrink shrink --num-experts N`"
    ):
        search(base_source, tmp_path / "out", text_file, target="bytes=-10%", merge_experts=True)


@pytest.mark.slow
def test_the_command_prints_tables_and_advice(
    base_source: Source, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", "--model", str(base_source.folder), "--calibration", str(text_file), "--target", "bytes=-30%"]
    for name, value in QUICK.items():
        if name == "vocab_languages":
            continue
        words += [f"--{name.replace('_', '-')}", str(value)]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    for part in ("What each dimension costs", "keeps", "- bytes=-30%: ", "Run it:   llama-cli -m", "page: "):
        assert part in text
    assert main([*words, "--output", str(tmp_path / "out"), "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"][0]["best"]
