"""Results for the Hub's leaderboards: `.eval_results/*.yaml`, for tasks whose data set is one of the Hub's benchmarks.

A benchmark is a data set that names its tasks in a file of its own, and that the Hub has admitted; a result under any
other name is refused. So only those are here whose names are known, and only their own metric.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from .artifacts import Measurement, Report

FOLDER = ".eval_results"
_SOURCE = "https://github.com/EleutherAI/lm-evaluation-harness"


@dataclass(frozen=True)
class Benchmark:
    """One task of a benchmark on the Hub.

    Args:
        tasks: Pattern of the names of lm-eval's tasks that ask it.
        metric: The metric that it ranks by, as reports call it.
        dataset: The data set's id.
        task_id: The task's id there.
    """

    tasks: str
    metric: str
    dataset: str
    task_id: str

    @property
    def file(self) -> str:
        """Name of its file."""
        return self.dataset.split("/")[1].lower() + ".yaml"


BENCHMARKS = (
    Benchmark("gsm8k", "exact_match,flexible-extract", "openai/gsm8k", "gsm8k"),
    Benchmark("mmlu_pro", "exact_match,custom-extract", "TIGER-Lab/MMLU-Pro", "mmlu_pro"),
    Benchmark("gpqa_diamond_(zeroshot|n_shot)", "acc", "Idavidrein/gpqa", "diamond"),
    Benchmark("gpqa_diamond_cot_(zeroshot|n_shot)", "exact_match,flexible-extract", "Idavidrein/gpqa", "diamond"),
)


def benchmark_entries(report: Report) -> dict[str, list[EvalResultEntry]]:
    """Return the shrunk model's results on the Hub's benchmarks, by the name of their file.

    Values are percent, as leaderboards show them. The notes have the examples in the prompt, the filter, the number of
    questions and the standard error.

    Args:
        report: The report.
    """
    found: dict[str, list[EvalResultEntry]] = {}
    for measurement in report.shrunk.quality:
        for benchmark in BENCHMARKS:
            if _asks(measurement, benchmark):
                found.setdefault(benchmark.file, []).append(_entry(measurement, benchmark))
    return found


def _asks(measurement: Measurement, benchmark: Benchmark) -> bool:
    return (
        re.fullmatch(benchmark.tasks, measurement.dataset) is not None
        and measurement.metric == benchmark.metric
        and measurement.settings.get("hub_dataset") == benchmark.dataset
    )


def _entry(measurement: Measurement, benchmark: Benchmark) -> EvalResultEntry:
    _, _, filter_name = measurement.metric.partition(",")
    notes = [f"{measurement.settings.get('num_fewshot')}-shot", measurement.dataset]
    notes += [filter_name] if filter_name else []
    notes += [f"n = {measurement.n}"]
    notes += [] if measurement.stderr is None else [f"standard error {100 * measurement.stderr:.2f}"]
    return EvalResultEntry(
        dataset_id=benchmark.dataset,
        task_id=benchmark.task_id,
        value=round(100 * measurement.value, 4),
        source_url=_SOURCE,
        source_name="lm-evaluation-harness",
        notes=", ".join(notes),
    )


def write_benchmark_entries(report: Report, folder: Path) -> None:
    """Write the files of a report's results on the Hub's benchmarks, and remove those that it has no result for.

    Args:
        report: The report.
        folder: The output folder.
    """
    entries = benchmark_entries(report)
    for name in {benchmark.file for benchmark in BENCHMARKS} - entries.keys():
        (folder / FOLDER / name).unlink(missing_ok=True)
    for name, found in entries.items():
        (folder / FOLDER).mkdir(exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(found), sort_keys=False, allow_unicode=True)
        (folder / FOLDER / name).write_text(text, encoding="utf-8")
    if (folder / FOLDER).is_dir() and not any((folder / FOLDER).iterdir()):
        (folder / FOLDER).rmdir()
