"""Results for the Hub's leaderboards, read back as `huggingface_hub` reads them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from optimum_ishrink.card.build import build_card
from optimum_ishrink.card.leaderboards import BENCHMARKS, FOLDER, benchmark_entries
from optimum_ishrink.core.json_files import write_json
from optimum_ishrink.evaluation.harness import _hub_dataset
from optimum_ishrink.report.files import REPORT_FILE
from optimum_ishrink.report.measurement import Measurement
from tests.helpers.card_folder import make_folder, make_report

HUB = {"num_fewshot": 5, "task_version": 3.0, "filter": "flexible-extract", "hub_dataset": "openai/gsm8k"}
GSM8K = Measurement("exact_match,flexible-extract", "gsm8k", 0.0625, 0.0067, 1319, HUB)


def with_task(*measurements: Measurement) -> Any:
    report = make_report()
    return replace(report, shrunk=replace(report.shrunk, quality=(*report.shrunk.quality, *measurements)))


def test_a_result_on_a_hub_benchmark_is_read_back(tmp_path: Path) -> None:
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
def test_other_results_have_no_file(changes: dict[str, Any]) -> None:
    assert benchmark_entries(with_task(replace(GSM8K, **changes))) == {}


TASK_FILES = {
    "gsm8k": ("gsm8k/gsm8k.yaml", "gsm8k/gsm8k.yaml"),
    "mmlu_pro": ("mmlu_pro/_mmlu_pro.yaml", "mmlu_pro/_default_template_yaml"),
    "gpqa_diamond_cot_zeroshot": (
        "gpqa/cot_zeroshot/gpqa_diamond_cot_zeroshot.yaml",
        "gpqa/cot_zeroshot/_gpqa_cot_zeroshot_yaml",
    ),
    "gpqa_diamond_cot_n_shot": (
        "gpqa/cot_n_shot/gpqa_diamond_cot_n_shot.yaml",
        "gpqa/cot_n_shot/_gpqa_cot_n_shot_yaml",
    ),
    "gpqa_diamond_zeroshot": (
        "gpqa/zeroshot/gpqa_diamond_zeroshot.yaml",
        "gpqa/zeroshot/_gpqa_zeroshot_yaml",
    ),
    "gpqa_diamond_n_shot": ("gpqa/n_shot/gpqa_diamond_n_shot.yaml", "gpqa/n_shot/_gpqa_n_shot_yaml"),
}
"""lm-eval's task or group, and the file that its data and metrics come from."""


@pytest.mark.parametrize("name", TASK_FILES)
def test_every_benchmark_matches_lm_evals_task(name: str) -> None:
    folder = Path(lm_eval.tasks.__file__).parent
    task, data = ((folder / path).read_text() for path in TASK_FILES[name])
    assert re.search(rf"^(task|group): *{name}$", task, re.M)
    (benchmark,) = (each for each in BENCHMARKS if re.fullmatch(each.tasks, name))
    assert re.search(rf"^dataset_path: *{benchmark.dataset}$", data, re.M)
    metric, _, filter_name = benchmark.metric.partition(",")
    assert re.search(rf"metric: *{metric}$", data, re.M)
    if filter_name:
        assert filter_name in data


def test_the_first_of_several_results_for_one_benchmark_counts() -> None:
    gpqa = {"num_fewshot": 0, "filter": "none", "hub_dataset": "Idavidrein/gpqa"}
    plain = Measurement("acc", "gpqa_diamond_zeroshot", 0.25, 0.03, 198, gpqa)
    thought = Measurement("exact_match,flexible-extract", "gpqa_diamond_cot_zeroshot", 0.5, 0.03, 198, gpqa)
    assert benchmark_entries(with_task(plain))["gpqa.yaml"].value == 25
    assert benchmark_entries(with_task(plain, thought))["gpqa.yaml"].value == 50


@pytest.mark.parametrize("text", ["- dataset: {id: openai/gsm8k, task_id: gsm8k}\n  value: 7\n", "[", "- 3\n", ""])
def test_a_file_of_somebody_else_is_not_changed(text: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out", with_task(GSM8K))
    file = folder / FOLDER / "gsm8k.yaml"
    file.parent.mkdir()
    file.write_text(text)
    build_card(folder)
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dataset_path": "openai/gsm8k"}, "openai/gsm8k"),
        ({"dataset_path": "openai/gsm8k", "dataset_kwargs": {"data_files": {"test": "a.json"}}}, None),
        ({"dataset_path": "json", "dataset_kwargs": {"data_files": "a.json"}}, None),
        ({"dataset_path": "/data/gsm8k"}, None),
        ({"dataset_path": "tests/helpers/tiny.py"}, None),
        ({}, None),
    ],
)
def test_the_hub_dataset_of_a_task(
    config: dict[str, Any], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Task:
        def get_config(self, name: str) -> Any:
            return config.get(name)

    monkeypatch.chdir(Path(__file__).parents[2])
    assert _hub_dataset(Task()) == expected
