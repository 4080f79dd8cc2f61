"""Whole runs on tiny models."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from optimum_ishrink import IShrinkConfig, IShrinker, RequestError
from optimum_ishrink.cli.program import main
from optimum_ishrink.core.json_files import read_json
from tests.helpers.command_words import flags
from tests.helpers.local_tasks import add_task
from tests.helpers.tiny import edit_json, save_tiny, tiny_config
from tests.helpers.torchrun import torchrun


def test_the_same_seed_gives_the_same_plan_and_weights(
    llama_folder: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = IShrinkConfig(
            target="params=-15%", seed=seed, evaluate=False, benchmark=False, **{**quick, "calibration": ["self"]}
        )
        result = IShrinker.from_pretrained(llama_folder).shrink(config, save_directory=tmp_path / name)
        made.append(((tmp_path / name / "model.safetensors").read_bytes(), result.plan.units, result.plan.layers))
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_weights_alone_need_no_model_in_memory(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("optimum_ishrink.checkpoint.source.load_model", refuse)
    monkeypatch.setattr("optimum_ishrink.surgery.stage.load_model", refuse)
    result = IShrinker.from_pretrained(llama_folder).shrink(
        num_hidden_layers=3,
        intermediate_size=16,
        importance="l2-norm",
        layer_importance="l2-norm",
        compensation="none",
        evaluate=False,
        benchmark=False,
        save_directory=tmp_path / "out",
    )
    assert result.plan.choice.calibration is None
    assert "No calibration text was used" in (tmp_path / "out" / "README.md").read_text()


def test_the_output_cannot_be_or_hold_its_own_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "runs" / "base", tiny_config("llama"))
    for output in (folder, tmp_path / "runs"):
        arguments = ["--output", str(output), "--overwrite", "--num-hidden-layers", "3"]
        assert main(["shrink", "--model", str(folder), *arguments]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("ishrink shrink: error:")
        assert (folder / "model.safetensors").exists()


def test_text_that_is_too_short_to_measure_on_is_found_before_the_cut(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short.txt").write_text("too short")
    monkeypatch.setattr("optimum_ishrink.pipeline.cutting.score", lambda *_: pytest.fail("the long work had begun"))
    with pytest.raises(RequestError, match=r"short.txt gives \d+ tokens"):
        IShrinker.from_pretrained(llama_folder).shrink(num_hidden_layers=3, eval_text=str(tmp_path / "short.txt"))


def test_tasks_are_part_of_the_report(
    llama_folder: Path, quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_task(tmp_path, "easy", rows=4)
    result = IShrinker.from_pretrained(llama_folder).shrink(
        num_hidden_layers=3, tasks="easy", include_path=str(tmp_path), save_directory=tmp_path / "out", **quick
    )
    found = [pair for pair in result.report.pairs("quality") if pair[1].dataset == "easy"]
    assert [shrunk.metric for _, shrunk in found] == ["acc", "acc_norm"]
    assert all(base is not None and (base.n, shrunk.n) == (4, 4) for base, shrunk in found)


def test_a_cut_that_is_not_exact_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "olmo2", tiny_config("olmo2"))
    shape = ["--num-key-value-heads", "2", "--importance", "l2-norm", "--compensation", "none"]
    shape += ["--no-evaluate", "--no-benchmark"]
    assert main(["shrink", "--model", str(folder), "--output", str(tmp_path / "out"), *shape]) == 0
    assert "Not exact: q_norm and k_norm span all heads" in capsys.readouterr().out
    assert "The cut is not exact: q_norm and k_norm span all heads" in (tmp_path / "out" / "README.md").read_text()
    assert main(["plan", "--model", str(folder), "--intermediate-size", "16", "--importance", "l2-norm"]) == 0
    assert "Not exact" not in capsys.readouterr().out


def test_a_class_that_derives_another_list_is_kept_right(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "q", tiny_config("qwen2", 1))
    edit_json(folder / "config.json", layer_types=None)
    result = IShrinker.from_pretrained(folder).shrink(
        num_hidden_layers=2,
        layer_importance="l2-norm",
        compensation="none",
        evaluate=False,
        benchmark=False,
        keep_first_layers=0,
        save_directory=tmp_path / "out",
    )
    kinds = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    assert result.model.config.layer_types == [kinds[layer] for layer in result.plan.layers]


def shrink_twice(words: list[str], folder: Path) -> list[dict[str, torch.Tensor]]:
    """Run `shrink` in one process and in two, and return the weights of both."""
    folder.mkdir()
    assert main(["shrink", *words, "--output", str(folder / "one")]) == 0
    command = [*torchrun(), "shrink", *words, "--output", str(folder / "two")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    return [load_file(folder / name / "model.safetensors") for name in ("one", "two")]


def check_alike(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_repair_with_scores_from_the_cache(
    llama_folder: Path, quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process draws the calibration text to score, and all have to take part in the draw for the repair."""
    monkeypatch.setenv("ISHRINK_CACHE", str(tmp_path / "cache"))
    words = ["--model", str(llama_folder), "--intermediate-size", "16", *flags(quick)]
    words += ["--calibration-samples", "8", "--no-evaluate", "--no-benchmark"]
    check_alike(*shrink_twice(words, tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "shape"),
    [
        ("llama", ["--num-hidden-layers", "3", "--num-key-value-heads", "2", "--merge-key-value-heads"]),
        ("olmoe", ["--num-experts", "3"]),
    ],
)
def test_two_processes_repair_as_one_does(model_type: str, shape: list[str], text_file: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type))
    words = ["--model", str(folder), *shape, "--calibration", str(text_file), "--calibration-samples", "9"]
    words += ["--calibration-length", "16", "--no-evaluate", "--no-benchmark", "--dtype", "float32", "--device", "cpu"]
    check_alike(*shrink_twice(words, tmp_path / "out"))
    one, two = (read_json(tmp_path / "out" / name / "ishrink_report.json") for name in ("one", "two"))
    ridges = [[each["ridge"] for each in report["compensation"]["repairs"]] for report in (one, two)]
    assert any(ridges[0]) and ridges[0] == ridges[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [["--sparsity", "2:4"], ["--num-hidden-layers", "3", "--compensation-for", "q8_0"]],
    ids=lambda how: how[-1],
)
def test_text_that_one_process_reads_is_drawn_by_all(how: list[str], tmp_path: Path) -> None:
    if "--compensation-for" in how:
        pytest.importorskip("gguf")
    folder = save_tiny(tmp_path / "base", tiny_config("llama", intermediate_size=32))
    words = ["--model", str(folder), *how, "--compensation", "none", "--calibration-samples", "8"]
    words += ["--calibration-length", "16", "--importance", "l2-norm", "--no-evaluate", "--no-benchmark"]
    check_alike(*shrink_twice([*words, "--dtype", "float32", "--device", "cpu"], tmp_path / "out"))


@pytest.mark.slow
def test_two_processes_cut_recover_and_measure_in_one_run(
    llama_folder: Path, text_file: Path, other_text: Path, tmp_path: Path
) -> None:
    words = f"""
        --model {llama_folder} --num-hidden-layers 3 --intermediate-size 16 --calibration {text_file}
        --calibration-samples 8 --calibration-length 16 --recovery kl --recovery-data {text_file}
        --recovery-tokens 700 --recovery-length 16 --recovery-train full --recovery-batch-size 4 --batch-size 4
        --recovery-compensation ridge --eval-text {other_text} --eval-samples 3 --eval-length 16
        --no-benchmark --dtype float32 --device cpu
    """.split()
    check_alike(*shrink_twice(words, tmp_path / "out"))
    one, two = (read_json(tmp_path / "out" / name / "ishrink_report.json") for name in ("one", "two"))
    assert two["recovery"]["processes"] == 2 and one["recovery"]["processes"] == 1
    assert [each["metric"] for each in two["shrunk"]["quality"]] == [
        each["metric"] for each in one["shrunk"]["quality"]
    ]
