"""A model whose class keeps no key-value cache, from the request to what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink import IShrinker
from optimum_ishrink.cli.program import main
from tests.helpers.local_tasks import add_generation_task, add_task
from tests.helpers.tiny import save_tiny, tiny_config


def test_it_is_cut_measured_and_talked_to(
    quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, output = save_tiny(tmp_path / "model", tiny_config("openai-gpt")), tmp_path / "out"
    how = {**quick, "calibration": ["self"]}
    result = IShrinker.from_pretrained(model).shrink(num_hidden_layers=3, save_directory=output, **how)
    (cache,) = (pair for pair in result.report.pairs("speed") if pair[1].metric == "kv_cache_bytes_per_token")
    assert [each.value for each in cache if each is not None] == [0, 0]
    assert len(result.report.samples) == 3
    add_task(tmp_path, "easy", rows=4)
    add_generation_task(tmp_path, "open", rows=2)
    both = ["--model", str(output), "--base", str(model), "--json"]
    for words in (
        ["benchmark", "--benchmark-prompt-length", "4", "--benchmark-new-tokens", "2", "--benchmark-rounds", "2"],
        ["evaluate", "--tasks", "easy,open", "--include-path", str(tmp_path), "--eval-samples", "2"],
        ["chat", "--prompt", "Hello", "--max-new-tokens", "4"],
    ):
        capsys.readouterr()
        assert main([*words, *both]) == 0
        assert json.loads(capsys.readouterr().out)
