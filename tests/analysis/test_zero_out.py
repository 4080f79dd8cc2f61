"""The whole analysis on tiny models: through the library and through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import Analysis, IShrinkConfig, IShrinker, RequestError
from optimum_ishrink.analysis.saved_state import State
from optimum_ishrink.analysis.zero_out import write_analysis
from optimum_ishrink.cli.program import main
from optimum_ishrink.core.json_files import read_json
from tests.helpers.command_words import flags
from tests.helpers.drawing import with_pictures
from tests.helpers.local_tasks import add_task
from tests.helpers.tiny import VARIANTS, in_full, save_tiny, tiny_config, tiny_model, tiny_tokenizer

KINDS = ("attention", "mlp", "layers", "all")
COUNT = 4 * 3 + 4  # three levels of four kinds, and four layers


@pytest.fixture(scope="module")
def quick(text_file: Path) -> dict[str, Any]:
    """Settings that take a second on a tiny model."""
    return {
        "calibration": [str(text_file)],
        "calibration_samples": 4,
        "calibration_length": 16,
        "analysis_samples": 3,
        "analysis_length": 16,
        "levels": "25,50",
        "dtype": "float32",
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def whole(
    llama_folder: Path, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Analysis, Path]:
    """An analysis that was not interrupted, and its folder."""
    output = tmp_path_factory.mktemp("analysis") / "out"
    with with_pictures():
        return IShrinker.from_pretrained(llama_folder).analyze(save_directory=output, **quick), output


def test_every_level_and_layer_is_measured_and_written(whole: tuple[Analysis, Path]) -> None:
    analysis, output = whole
    assert [(level.kind, level.sparsity) for level in analysis.levels] == [
        (kind, share) for kind in KINDS for share in (0.0, 0.25, 0.5)
    ]
    for levels in analysis.kinds().values():
        assert [measured.metric for measured in levels[0].quality] == ["perplexity", "kl_divergence", "top1_agreement"]
        assert levels[0].removed_parameters == levels[0].measured("kl_divergence").value == 0
        assert levels[0].measured("top1_agreement").value == 1
        assert levels[0].removed_share < levels[1].removed_share < levels[2].removed_share
        assert levels[2].measured("kl_divergence").value > levels[1].measured("kl_divergence").value > 0
    assert [layer.layer for layer in analysis.sensitivity] == [0, 1, 2, 3]
    assert all(
        measured.n == 3 and measured.stderr is not None for level in analysis.levels for measured in level.quality
    )
    assert analysis.settings["text"]["sources"] == ["words.txt"]
    assert len(analysis.settings["text"]["fingerprints"][0]) == 16
    assert analysis.settings["protected_layers"] == [1, 0]
    assert analysis.environment.versions["torch"]
    assert Analysis.from_json(read_json(output / "analysis.json")) == analysis
    assert {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()} == {
        "analysis.json",
        "figures/sparsity.png",
        "figures/sensitivity.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in output.rglob("*.png"))
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    # What may be published says nothing of this machine.
    assert str(output.parent.parent) not in (output / "analysis.json").read_text()


def test_the_model_is_as_it_was_and_the_advice_can_be_followed(llama_folder: Path, quick: dict[str, Any]) -> None:
    model = tiny_model(tiny_config("qwen3"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shrinker = IShrinker.from_pretrained(model, tokenizer=tiny_tokenizer())
    settings = {**quick, "max_divergence": 20}
    asked = {key: settings.pop(key) for key in ("analysis_samples", "analysis_length", "levels", "max_divergence")}
    config = IShrinkConfig(**settings)
    analysis = shrinker.analyze(config, **asked)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    used = shrinker._session.model
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in used.modules())
    assert analysis.changes["target"].startswith("params=-")
    assert "ishrink shrink --model" in analysis.command
    assert f"--target {analysis.changes['target']}" in analysis.command
    plan = shrinker.plan(config, **analysis.changes, intermediate_multiple=1)
    best = max(level.removed_share for level in analysis.levels if level.kind != "attention")
    assert plan.removed_share == pytest.approx(best, abs=0.01)


# Before the first measurement, between levels and layers, and before the last.
@pytest.mark.parametrize(
    "after", [0, 12, COUNT - 1, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 11, 13))]
)
def test_interrupted_and_resumed_equals_uninterrupted(
    after: int,
    whole: tuple[Analysis, Path],
    llama_folder: Path,
    quick: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = State._write_json

    def interrupt(state: State) -> None:
        written(state)
        if state.count == after:
            raise KeyboardInterrupt

    shrinker = IShrinker.from_pretrained(llama_folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as stopped:
        patch.setattr(State, "_write_json", interrupt)
        shrinker.analyze(save_directory=tmp_path / "out", **quick)
    stored = tmp_path / "out.partial"
    assert str(stopped.value) == (f"{after} measurements are stored in {stored}; run the same command again to resume")
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    if after:
        # The scores are not computed again.
        monkeypatch.setattr("optimum_ishrink.analysis.zero_out.score", lambda *_: pytest.fail("scored again"))
    capsys.readouterr()
    resumed = IShrinker.from_pretrained(llama_folder).analyze(save_directory=tmp_path / "out", **quick)
    assert resumed == whole[0]
    assert (f"resuming in {stored}: {after} of {COUNT}" in capsys.readouterr().err) == bool(after)
    assert (tmp_path / "out" / "analysis.json").read_bytes() == (whole[1] / "analysis.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_all_there_needs_no_model(
    whole: tuple[Analysis, Path],
    llama_folder: Path,
    quick: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "the drawing failed")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="the drawing failed"):
        patch.setattr("optimum_ishrink.analysis.zero_out.draw_sparsity", fail)
        IShrinker.from_pretrained(llama_folder).analyze(save_directory=tmp_path / "out", **quick)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    monkeypatch.setattr("optimum_ishrink.checkpoint.source.load_model", lambda *_: pytest.fail("the model was loaded"))
    # Another threshold is another advice from the same measurements.
    found = IShrinker.from_pretrained(llama_folder).analyze(
        save_directory=tmp_path / "out", max_divergence=1e-9, **quick
    )
    assert found.levels == whole[0].levels
    assert found.changes == {}
    assert found.finer_levels == (0, 5, 10, 15, 20, 25)
    assert "--levels 0,5,10,15,20,25" in found.command


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"seed": 1}, "settings"), ({"levels": "25"}, "settings"), ({"dtype": "bfloat16"}, "dtype")],
)
def test_another_request_does_not_mix(
    changes: dict[str, Any],
    named: str,
    llama_folder: Path,
    quick: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(State, "add_layer", interrupt)
        IShrinker.from_pretrained(llama_folder).analyze(save_directory=tmp_path / "out", **quick)
    other = {**quick, **changes}
    capsys.readouterr()
    found = IShrinker.from_pretrained(llama_folder).analyze(save_directory=tmp_path / "out", **other)
    assert f"the request differs ({named})" in capsys.readouterr().err
    assert found == IShrinker.from_pretrained(llama_folder).analyze(**other)


def test_levels_that_come_to_the_same_are_measured_once(
    llama_folder: Path, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum_ishrink.analysis import zero_out

    seen: list[Any] = []
    measure = zero_out._quality
    monkeypatch.setattr(zero_out, "_quality", lambda *how: (seen.append(how[2]), measure(*how))[1])
    settings = {**quick, "levels": "0.1,25,26"}
    analysis = IShrinker.from_pretrained(llama_folder).analyze(**settings)
    assert len(seen) == len(set(seen)) == 5  # nothing; and attention, mlp, layers, all at a quarter
    assert len(analysis.levels) == 16


# Fixed heads, experts, packed and transposed weights; tests/analysis/test_masking.py masks in every architecture.
@pytest.mark.parametrize("model_type", in_full(VARIANTS, "llama", "gpt2", "phi3", "gpt_oss", "gpt_neox"))
def test_every_architecture_is_analysed(model_type: str, quick: dict[str, Any]) -> None:
    model = tiny_model(tiny_config(model_type))
    shrinker = IShrinker.from_pretrained(model, tokenizer=tiny_tokenizer())
    settings = {**quick, "levels": "50"}
    experts = shrinker.source.binding.mlps > 1
    if experts:
        with pytest.raises(RequestError, match="'obs' cannot see into experts; importance can be"):
            shrinker.analyze(**{**settings, "importance": "obs"})
    if shrinker.source.binding.joined is not None:
        with pytest.raises(RequestError, match="^analyze runs the layers of a model one by one, and those of"):
            shrinker.analyze(**settings)
        return
    if model_type == "llama4_text":
        with pytest.raises(
            RequestError, match="what they read cannot be observed; use --importance l2-norm or taylor"
        ):
            shrinker.analyze(**settings)
        settings["importance"] = "l2-norm"
    analysis = shrinker.analyze(**settings)
    assert len(analysis.levels) == 8
    assert all(level.measured("kl_divergence").value > 0 for level in analysis.levels if level.sparsity)
    fixed = shrinker.source.binding.description.dimensions["num_key_value_heads"].fixed
    assert any("attention is measured, but cannot be cut" in note for note in analysis.notes) == bool(fixed)
    if fixed:
        assert "num_key_value_heads" not in analysis.kinds()["all"][1].removed_units
        assert "attention" not in analysis.advice


def test_from_the_models_own_words(llama_folder: Path, quick: dict[str, Any]) -> None:
    settings = {**quick, "calibration": ["self"], "importance": "taylor"}
    found = [IShrinker.from_pretrained(llama_folder).analyze(**settings, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert found[0].levels != found[2].levels


def test_another_text(llama_folder: Path, other_text: Path, quick: dict[str, Any]) -> None:
    shrinker = IShrinker.from_pretrained(llama_folder)
    found = shrinker.analyze(analysis_text=[str(other_text), "pydoc"], max_divergence=1e-9, **quick)
    assert found.levels[0].quality[0].dataset == "other.txt, Python reference topics"
    assert found.settings["text"]["sources"] == ["other.txt", "Python reference topics"]
    assert "--analysis-text other.txt,pydoc" in found.command


def test_tasks_at_every_level(llama_folder: Path, quick: dict[str, Any], tmp_path: Path) -> None:
    add_task(tmp_path, "easy", rows=4)
    settings = {**quick, "levels": "50", "tasks": "easy", "include_path": str(tmp_path)}
    analysis = IShrinker.from_pretrained(llama_folder).analyze(**settings)
    for level in analysis.levels:
        assert (level.measured("acc").dataset, level.measured("acc").n) == ("easy", 4)
    starts = [levels[0].measured("acc") for levels in analysis.kinds().values()]
    assert starts == [starts[0]] * 4


def test_writing_the_same_analysis_gives_the_same_files(whole: tuple[Analysis, Path], tmp_path: Path) -> None:
    with with_pictures():
        write_analysis(whole[0], tmp_path)
    for name in ("analysis.json", "figures/sparsity.png", "figures/sensitivity.png"):
        assert (tmp_path / name).read_bytes() == (whole[1] / name).read_bytes()


# The command line.


def test_the_command_line_prints_tables_figures_and_a_command(
    llama_folder: Path, quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["analyze", "--model", str(llama_folder), *flags(quick)]
    assert main([*arguments, "--output", str(tmp_path / "a")]) == 0
    captured = capsys.readouterr()
    for text in ("without compensation", "KL divergence, nats/token", "8 KV groups", "Layer by layer", "to protect"):
        assert text in captured.out
    assert captured.out.splitlines()[-1].startswith(f"ishrink shrink --model {llama_folder} --output ")
    assert "zero-out" in captured.err
    assert main([*arguments, "--output", str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("output") == str(tmp_path / "b")
    assert Analysis.from_json(found) == Analysis.from_json(read_json(tmp_path / "a" / "analysis.json"))
    assert main([*arguments, "--output", str(tmp_path / "b")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*arguments, "--output", str(tmp_path / "b"), "--overwrite", "--max-divergence", "1e-9"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ishrink analyze --model ")
    assert read_json(tmp_path / "b" / "analysis.json")["max_divergence"] == 1e-9


def test_ctrl_c_says_how_to_resume(
    llama_folder: Path,
    quick: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = ["analyze", "--model", str(llama_folder), *flags(quick), "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(State, "add_layer", interrupt)
        assert main(arguments) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"ishrink analyze: interrupted; 12 measurements are stored in {tmp_path / 'out.partial'}; "
        "run the same command again to resume"
    )
    assert main(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with monkeypatch.context() as patch:
        patch.setattr("optimum_ishrink.analysis.zero_out.score", interrupt)
        assert main([*arguments[:-1], str(tmp_path / "other")]) == 130
    assert "interrupted; nothing was left half written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", "60%"], "levels must be numbers such as 0,10,25, each at least 0 and at most 50, not '60%'"),
        (["--levels=-5,10"], "levels must be numbers"),
        (["--levels", "ten"], "levels must be numbers"),
        (["--analysis-samples", "0"], "analysis_samples must be a whole number of at least 1"),
        (["--analysis-samples", "9999"], "after the 64 used for calibration; 9999 were requested"),
        (["--analysis-text", "no.txt"], "no.txt does not exist"),
        (["--max-divergence", "-1"], "max_divergence must be a number above 0"),
        (["--keep-first-layers", "3"], "a level of 50 would skip 2 of 4 layers"),
        (["--importance", "tailor"], "did you mean 'taylor'"),
        (["--compensation", "ridge"], "unknown argument '--compensation'"),
        (["--tasks", "a", "--include-path", "nowhere"], "is not a folder"),
        (["--analysis-samples", "many"], "invalid int value: 'many'"),
    ],
)
def test_bad_requests_get_one_line_and_leave_nothing(
    arguments: list[str],
    message: str,
    llama_folder: Path,
    quick: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["analyze", "--model", str(llama_folder), "--output", str(tmp_path / "out"), *flags(quick), *arguments]
    try:
        status = main(words)
    except SystemExit as leaving:  # argparse leaves by itself
        status = int(leaving.code or 0)
    captured = capsys.readouterr()
    assert status == 2
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not any(tmp_path.iterdir())


def test_the_output_is_no_input_and_no_working_directory(
    quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama"))
    words = ["analyze", "--model", str(folder), "--overwrite", *flags(quick)]
    assert main([*words, "--output", str(folder)]) == 2
    monkeypatch.chdir(tmp_path / "base")
    assert main([*words, "--output", "."]) == 2
    (tmp_path / "out.partial").write_text("")
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'out.partial'} is a file" in capsys.readouterr().err
    assert (folder / "model.safetensors").exists()
