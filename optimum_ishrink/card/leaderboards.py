"""Results for the Hub's leaderboards: `.eval_results/*.yaml`, for tasks whose data set is one of the Hub's benchmarks.

A benchmark is a data set that declares its tasks in a file and that the Hub has admitted; the Hub refuses a result
under any other name. So this module lists only known benchmarks, each with its official metric.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml, parse_eval_result_entries

from ..core.durable import replace_file
from ..report.measurement import Measurement
from ..report.report import Report

FOLDER = ".eval_results"
_SOURCE = "https://github.com/EleutherAI/lm-evaluation-harness"
_NAME = "lm-evaluation-harness, by optimum-ishrink"
"""Also distinguishes our files from others."""


@dataclass(frozen=True)
class Benchmark:
    """One task of a benchmark on the Hub.

    Args:
        tasks: Pattern of the names of lm-eval's tasks that evaluate it.
        metric: The metric that it ranks by, as named in reports.
        dataset: The data set's id.
        task_id: The task's id there.
    """

    tasks: str
    metric: str
    dataset: str
    task_id: str

    @property
    def file(self) -> str:
        """Name of its result file."""
        return self.dataset.split("/")[1].lower() + ".yaml"


BENCHMARKS = (
    Benchmark("gsm8k", "exact_match,flexible-extract", "openai/gsm8k", "gsm8k"),
    Benchmark("mmlu_pro", "exact_match,custom-extract", "TIGER-Lab/MMLU-Pro", "mmlu_pro"),
    Benchmark("gpqa_diamond_cot_(zeroshot|n_shot)", "exact_match,flexible-extract", "Idavidrein/gpqa", "diamond"),
    Benchmark("gpqa_diamond_(zeroshot|n_shot)", "acc", "Idavidrein/gpqa", "diamond"),
)
"""If several match one task of a benchmark, the first one measured counts."""


def benchmark_entries(report: Report) -> dict[str, EvalResultEntry]:
    """Return the shrunk model's results on the Hub's benchmarks, by file name; one per benchmark.

    Values are in percent, as on leaderboards. The notes give the number of few-shot examples, the filter, the number
    of questions and the standard error.

    Args:
        report: The report.
    """
    found: dict[str, EvalResultEntry] = {}
    for benchmark in BENCHMARKS:
        for measurement in report.shrunk.quality:
            if _matches(measurement, benchmark):
                found.setdefault(benchmark.file, _entry(measurement, benchmark))
    return found


def _matches(measurement: Measurement, benchmark: Benchmark) -> bool:
    return (
        re.fullmatch(benchmark.tasks, measurement.dataset) is not None
        and measurement.metric == benchmark.metric
        and measurement.hub_dataset == benchmark.dataset
    )


def _entry(measurement: Measurement, benchmark: Benchmark) -> EvalResultEntry:
    _, _, filter_name = measurement.metric.partition(",")
    notes = [f"{measurement.num_fewshot}-shot", measurement.dataset]
    notes += [filter_name] if filter_name else []
    notes += [f"n = {measurement.n}"]
    notes += [] if measurement.stderr is None else [f"standard error {100 * measurement.stderr:.2f}"]
    return EvalResultEntry(
        dataset_id=benchmark.dataset,
        task_id=benchmark.task_id,
        value=round(100 * measurement.value, 4),
        source_url=_SOURCE,
        source_name=_NAME,
        notes=", ".join(notes),
    )


def write_benchmark_entries(report: Report, folder: Path) -> None:
    """Write the files of a report's results on the Hub's benchmarks, and remove our files without a result.

    Files of others are not changed.

    Args:
        report: The report.
        folder: The output folder.
    """
    entries = benchmark_entries(report)
    place = folder / FOLDER
    for name in sorted({benchmark.file for benchmark in BENCHMARKS}):
        if (place / name).exists() and not _is_ours(place / name):
            continue
        if name in entries:
            place.mkdir(exist_ok=True)
            text = yaml.safe_dump(eval_result_entries_to_yaml([entries[name]]), sort_keys=False, allow_unicode=True)
            replace_file(place / name, text.encode())
        else:
            (place / name).unlink(missing_ok=True)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def _is_ours(path: Path) -> bool:
    try:
        entries = parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        return False
    return bool(entries) and all(entry.source_name == _NAME for entry in entries)
