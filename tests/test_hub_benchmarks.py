"""Results for the Hub's leaderboards, read back as `huggingface_hub` reads them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import yaml
from card_folder import make_folder, make_report
from huggingface_hub import parse_eval_result_entries

from optimum_ishrink.artifacts import REPORT_FILE, Measurement, write_json
from optimum_ishrink.card import build_card
from optimum_ishrink.evaluation.harness import _hub_dataset
from optimum_ishrink.hub_benchmarks import BENCHMARKS, FOLDER, benchmark_entries

HUB = {"num_fewshot": 5, "task_version": 3.0, "filter": "flexible-extract", "hub_dataset": "openai/gsm8k"}
GSM8K = Measurement("exact_match,flexible-extract", "gsm8k", 0.0625, 0.0067, 1319, HUB)


def with_task(*measurements: Measurement) -> Any:
    report = make_report()
    return replace(report, shrunk=replace(report.shrunk, quality=(*report.shrunk.quality, *measurements)))


def test_a_benchmark_of_the_hub_has_a_file_that_is_read_back(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out", with_task(GSM8K))
    build_card(folder)
    (file,) = (folder / FOLDER).iterdir()
    assert file.name == "gsm8k.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 6.25)
    assert entry.notes == "5-shot, gsm8k, flexible-extract, n = 1319, standard error 0.67"
    write_json(folder / REPORT_FILE, make_report().to_json())
    build_card(folder)
    assert not (folder / FOLDER).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {**HUB, "hub_dataset": "somebody/else"}},
        {"settings": {name: value for name, value in HUB.items() if name != "hub_dataset"}},  # local data
        {"metric": "exact_match,strict-match"},
        {"dataset": "gsm8k_cot"},
    ],
)
def test_what_is_no_benchmark_has_no_file(changes: dict[str, Any]) -> None:
    assert benchmark_entries(with_task(replace(GSM8K, **changes))) == {}


def test_every_benchmark_is_what_lm_evals_own_task_reads() -> None:
    folder = Path(lm_eval.tasks.__file__).parent
    for benchmark in BENCHMARKS:
        family = benchmark.tasks.split("_")[0]
        texts = [
            path.read_text()
            for path in (folder / family).rglob("*")
            if path.suffix in (".yaml", "") and path.is_file()
        ]
        texts += [path.read_text() for path in (folder / "mmlu_pro").glob("*yaml") if family == "mmlu"]
        named = {name for text in texts for name in re.findall(r"^(?:task|group): *(\S+)$", text, re.M)}
        assert any(re.fullmatch(benchmark.tasks, name) for name in named), benchmark
        assert any(f"dataset_path: {benchmark.dataset}" in text for text in texts), benchmark
        metric, _, filter_name = benchmark.metric.partition(",")
        assert any(re.search(rf"metric: *{metric}\b", text) for text in texts)
        assert any(filter_name in text for text in texts)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dataset_path": "openai/gsm8k"}, "openai/gsm8k"),
        ({"dataset_path": "openai/gsm8k", "dataset_kwargs": {"data_files": {"test": "a.json"}}}, None),
        ({"dataset_path": "json", "dataset_kwargs": {"data_files": "a.json"}}, None),
        ({"dataset_path": "/data/gsm8k"}, None),
        ({"dataset_path": "tests/tiny.py"}, None),
        ({}, None),
    ],
)
def test_which_data_set_of_the_hub_a_task_reads(
    config: dict[str, Any], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Task:
        def get_config(self, name: str) -> Any:
            return config.get(name)

    monkeypatch.chdir(Path(__file__).parent.parent)
    assert _hub_dataset(Task()) == expected
