"""A search for torch: the checkpoint runs, in its own dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinker
from optimum_ishrink.checkpoint.source import Source
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import RequestError
from optimum_ishrink.planning.nesting import is_nested
from optimum_ishrink.report.run import read_run
from optimum_ishrink.report.search import SearchRecord
from optimum_ishrink.search import measured_damage, torch_runtime
from optimum_ishrink.search.options import ProfileOptions, SearchOptions
from optimum_ishrink.search.profile import Profile
from optimum_ishrink.search.torch_runtime import checkpoint_nbytes
from tests.helpers import made_up_device
from tests.search.test_search import QUICK, search


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up_device.install(monkeypatch)


def test_the_best_checkpoint_is_written_with_its_record(
    base_source: Source, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    record = search(base_source, output, text_file, runtime="torch", target="params=-8%,decode=+4%")
    assert record.runtime == "torch" and record.quantizations == ("f32",)
    (answer,) = record.answers
    best = record.model_named(answer.best or "")
    assert answer.file is None and answer.folder == "model" and best.measured is not None
    folder = output / "model"
    assert checkpoint_nbytes(folder) == best.measured.costs["bytes"] == best.expected.costs["bytes"]
    assert best.measured.costs["params"] <= 0.92 * record.reference["params"]
    assert best.measured.costs["decode"] >= 1.04 * record.reference["decode"]
    for metric in ("decode", "ttft", "memory"):
        assert best.measured.costs[metric] == pytest.approx(best.expected.costs[metric], rel=0.1)
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() == best.measured.costs["params"]
    card = (folder / "README.md").read_text()
    assert "Searched for `params=-8%,decode=+4%` in torch. " in card and "The file's types" not in card
    assert "| checkpoint |" in card
    assert sorted(path.name for path in output.iterdir()) == [
        "index.html",
        "measurements",
        "model",
        "search.json",
    ]
    assert SearchRecord.read(output) == record
    page = (output / "index.html").read_text()
    assert "bytes of the checkpoint, MB" in page and "quantise alone" not in page and "GGUF" not in page
    advice = " ".join(record.advice)
    assert "params=-8%,decode=+4%: f32" in advice and "quantis" not in advice
    assert made_up_device.VERIFIED == []


def test_a_profile_is_of_one_runtime(base_source: Source, text_file: Path, tmp_path: Path) -> None:
    shrinker, file = IShrinker(base_source), tmp_path / "server.json"
    how = {"prompt_length": 8, "context": 64}
    found = shrinker.profile(output=file, runtime="torch", timing_rounds=1, **how)
    assert Profile.read(file) == found and found.runtime == "torch"
    assert all(error is not None and error < 0.1 for error in found.costs.errors.values())
    asked = {"profile": str(file), "target": "decode=+5%"}
    with pytest.raises(RequestError, match="the profile is of torch, and the search is for llama.cpp; pass --runtime"):
        search(base_source, tmp_path / "out", text_file, **asked)
    made_up_device.TIMED.clear()
    record = search(base_source, tmp_path / "out", text_file, runtime="torch", **asked)
    assert record.answers[0].folder == "model" and made_up_device.TIMED == []


def test_what_torch_does_not_run_is_refused_before_any_work(
    base_source: Source, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequestError, match="rounds no weight: leave out --rounding, or pass --runtime llama.cpp"):
        SearchOptions(runtime="torch", rounding="nearest")
    assert SearchOptions(runtime="torch").rounding == SearchOptions(runtime="torch", rounding="calibrated").rounding
    with pytest.raises(RequestError, match="--script writes a program that measures llama.cpp, not torch: leave out"):
        IShrinker(base_source).profile_script(output=tmp_path / "server.pyz", runtime="torch")
    for names in (["q8_0"], ["bf16", "f16"], ["int8"]):
        with pytest.raises(RequestError, match="one of bf16, f16, f32, not in .*: leave out --quantization"):
            ProfileOptions(runtime="torch", quantization=names)
    for more, words in (
        ({"quantization": ["bf16"]}, "is in f32: leave out --quantization, or name f32"),
        ({"context": 100_000}, "context=100000 is more than the 512 positions"),
        ({"context": 8}, "a context of 8 tokens has no room for a prompt of 8 and a token after it"),
    ):
        with pytest.raises(RequestError, match=words):
            search(base_source, tmp_path / "out", text_file, runtime="torch", target="bytes=-10%", **more)
    words = ["search", "--model", str(base_source.folder), "--runtime", "torch", "--quantization", "q4_0"]
    assert main([*words, "--target", "bytes=-10%", "--output", str(tmp_path / "out")]) == 2
    assert "leave out --quantization; --runtime llama.cpp chooses" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_metric_that_the_system_does_not_report_is_refused(
    base_source: Source, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(*args: Any, **how: Any) -> Any:
        found, build = made_up_device.time_checkpoints(*args, **how)
        return {name: {key: of[key] for key in ("decode", "ttft")} for name, of in found.items()}, build

    monkeypatch.setattr(torch_runtime, "time_checkpoints", without_memory)
    with pytest.raises(RequestError, match="does not report the memory of a process, so memory=-10% cannot be met"):
        search(base_source, tmp_path / "out", text_file, runtime="torch", target="memory=-10%")


def test_a_family_is_nested_and_a_further_size_needs_no_new_measurement(
    base_source: Source, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"runtime": "torch", "candidates": 1}
    record = search(base_source, tmp_path / "sizes", text_file, target="params=-4%;params=-9%", **how)
    assert [answer.folder for answer in record.answers] == ["1/model", "2/model"]
    assert record.answers[1].part_of == "params=-4%"
    plans = [read_run(tmp_path / "sizes" / str(number) / "model")[0] for number in (1, 2)]
    assert is_nested(plans[0], plans[1])
    made_up_device.TIMED.clear()
    again: list[Any] = []
    measure = measured_damage.Measuring.of_shape

    def watched(self: Any, shape: Any, within: str = "") -> Any:
        if not self.store.has(f"shape {self.maker.name(shape, within)}"):
            again.append(shape)
        return measure(self, shape, within)

    monkeypatch.setattr(measured_damage.Measuring, "of_shape", watched)
    more = search(base_source, tmp_path / "more", text_file, target="params=-7%", reuse=str(tmp_path / "sizes"), **how)
    assert more.answers[0].folder == "model"
    assert len(again) <= 1, "one candidate, and no dimension"
    assert len(made_up_device.TIMED) == 1, "the models that were made, and no probes"


@pytest.mark.slow
def test_the_commands_say_how_to_load_it_and_which_runtime_the_profile_is_of(
    base_source: Source, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(base_source.folder), "--runtime", "torch", "--prompt-length", "8", "--context", "64"]
    assert main(["profile", *common, "--output", str(tmp_path / "server.json")]) == 0
    assert "ishrink search --runtime torch --model" in capsys.readouterr().out
    words = ["search", *common, "--calibration", str(text_file), "--target", "params=-8%"]
    for name in ("calibration_samples", "calibration_length", "importance_samples", "search_samples", "search_length"):
        words += [f"--{name.replace('_', '-')}", str(QUICK[name])]
    output = tmp_path / "out"
    assert main([*words, "--candidates", "1", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert f'from_pretrained("{output / "model"}")' in text and "llama" not in text.replace("tiny", "")
    assert json.loads((output / "search.json").read_text())["answers"][0]["file"] is None
