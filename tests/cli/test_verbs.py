"""What the verbs print and write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.cli.program import main
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.report.report import Report
from tests.helpers.command_words import flags


def test_shrink_prints_tables_and_json_prints_one_object(
    llama_folder: Path, quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["shrink", "--model", str(llama_folder), "--num-hidden-layers", "3", *flags(quick)]
    assert main([*arguments, "--output", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    for text in ("num_hidden_layers", "KL divergence from the base", "decode, tokens/s", "Load it:", "Push it:"):
        assert text in out
    assert main([*arguments, "--output", str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Plan.from_json(found["plan"]).new_shape["num_hidden_layers"] == 3
    assert Report.from_json(found["report"]).shrunk.name == "b"


def test_plan_writes_nothing_but_the_plan(
    llama_folder: Path, quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(llama_folder), "--target", "params=-20%", *flags(quick)]
    planning = list(arguments)
    for name in (
        "eval-text",
        "eval-samples",
        "eval-length",
        "benchmark-prompt-length",
        "benchmark-new-tokens",
        "benchmark-rounds",
    ):
        at = planning.index("--" + name)
        del planning[at : at + 2]
    assert main(["plan", *planning, "--output", str(tmp_path / "plan.json")]) == 0
    out = capsys.readouterr().out
    assert "Layer by layer" in out
    assert "config.json" in out
    plan = Plan.from_json(read_json(tmp_path / "plan.json"))
    assert plan.removed_share == pytest.approx(0.20, abs=0.005)
    assert main(["plan", *planning, "--output", str(tmp_path / "plan.json")]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["shrink", *arguments, "--dry-run", "--json"]) == 0
    assert Plan.from_json(json.loads(capsys.readouterr().out)).units == plan.units
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "no/such/plan.json"], "no/such is not a folder"),
        (["--output", "plan.json", "--shape-only"], "--shape-only chooses nothing"),
    ],
)
def test_a_plan_that_cannot_be_saved(
    arguments: list[str], message: str, llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", str(llama_folder), "--num-hidden-layers", "3", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_shape_is_planned_without_weights(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text((llama_folder / "config.json").read_text())
    assert main(["plan", "--model", str(tmp_path), "--intermediate-size", "16", "--shape-only", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new_shape"]["intermediate_size"] == 16
    assert found["new_num_parameters"] == found["num_parameters"] - 4 * 3 * 32 * 8
    assert main(["plan", "--model", str(tmp_path), "--intermediate-size", "16", "--shape-only"]) == 0
    assert "parameters" in capsys.readouterr().out


def test_evaluate_and_benchmark_any_two_models(
    llama_folder: Path, output: Path, other_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(output), "--base", str(llama_folder), "--dtype", "float32", "--json"]
    quality = ["--eval-text", str(other_text), "--eval-samples", "3", "--eval-length", "16"]
    assert main(["evaluate", *common, *quality]) == 0
    report = Report.from_json(json.loads(capsys.readouterr().out))
    stored = Report.from_json(read_json(output / "ishrink_report.json"))
    assert [m.value for m in report.shrunk.quality] == pytest.approx(
        [m.value for m in stored.shrunk.quality], rel=1e-4
    )
    assert main(["evaluate", *common[:2], *common[4:6], *quality]) == 0
    assert "base" not in capsys.readouterr().out.splitlines()[1]
    speed = ["--benchmark-rounds", "2", "--benchmark-prompt-length", "4", "--benchmark-new-tokens", "2"]
    assert main(["benchmark", *common, *speed]) == 0
    report = Report.from_json(json.loads(capsys.readouterr().out))
    assert report.base is not None
    assert len(report.base.speed) == len(report.shrunk.speed) >= 8


def test_the_command_line_takes_a_description(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--model", str(llama_folder), "--intermediate-size", "16", "--shape-only"]
    (tmp_path / "odd.json").write_text("{}")
    assert main([*arguments, "--architecture", str(tmp_path / "odd.json")]) == 2
    assert "odd.json is not an architecture description" in capsys.readouterr().err
