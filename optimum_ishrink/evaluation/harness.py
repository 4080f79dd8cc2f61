"""Tasks of lm-evaluation-harness, by name or from a folder of task files, on a model that is already in memory."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.digest import folder_digest
from ..errors import DataError, NotFiniteError, unknown_name
from ..report.measurement import Measurement
from .task_groups import GROUPS, TaskRequest, requested_tasks

BOOTSTRAP_ITERS = 1000
"""Resamples for the standard error of metrics that have no formula for it."""

_REASON = 200
"""Characters of another library's error that are passed on."""

_TASK_FILES = (".py", ".yaml", ".yml", ".jinja", ".j2")
"""What of a folder of task files decides what a task does; its data are hashed by themselves."""


def open_tasks(tasks: Sequence[str], include_path: str | None, num_fewshot: int | None = None) -> Any:
    """Return lm-eval's task manager, once all tasks are known to exist.

    With an include path only that folder is read: indexing lm-eval's own thousands of tasks takes seconds.

    Args:
        tasks: Names of tasks, of lm-eval's groups, or of `task_groups.GROUPS`.
        include_path: Folder with task files, or None for lm-eval's own tasks.
        num_fewshot: Requested examples in the prompt; None for each task's own number.

    Raises:
        DataError: The folder does not exist, or it has no such task; or a group has another number of examples.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"include_path {include_path} is not a folder")
    requests = requested_tasks(tasks, num_fewshot)
    manager = _builtin_tasks() if include_path is None else _task_manager(include_path)
    for request in requests:
        if request.name not in manager.all_tasks:
            if include_path is None:
                own = ", ".join(sorted(GROUPS))
                raise DataError(f"unknown task {request.name!r}; `lm-eval ls tasks` lists lm-eval's own, and {own}")
            raise DataError(unknown_name("task", request.name, [*manager.all_tasks, *GROUPS]))
    return manager


@cache
def _builtin_tasks() -> Any:
    """Return the index of lm-eval's own tasks: it takes seconds, and is the same for a whole process."""
    return _task_manager(None)


def _task_manager(include_path: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=include_path is None)


@dataclass(frozen=True)
class TaskResult:
    """Result of one task on one model.

    Args:
        name: The task.
        metrics: lm-eval's figures, by `metric,filter` and `metric_stderr,filter`, and `sample_len`.
        num_fewshot: Examples in the prompt.
        version: The task's version.
        higher_is_better: By metric.
        questions: Identifier of each question, in order.
        answers: By `metric,filter`, the value of each question; only metrics with a plain number for every question.
        hub_dataset: The data set on the Hub that the questions of lm-eval's own task are from; None for any other.
    """

    name: str
    metrics: Mapping[str, Any]
    num_fewshot: int
    version: Any
    higher_is_better: Mapping[str, bool]
    questions: tuple[str, ...] = ()
    answers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    hub_dataset: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskResult:
        """Build a result from plain values."""
        answers = {key: tuple(values) for key, values in data["answers"].items()}
        return cls(**{**data, "questions": tuple(data["questions"]), "answers": answers})


@dataclass(frozen=True)
class LoadedTasks:
    """A task or a group, with its data.

    Args:
        request: The requested task or group.
        tasks: Name to lm-eval's task.
        groups: Name to lm-eval's group of them.
        builtin: Whether they are lm-eval's own, not from a folder of task files.
        files: Hash of that folder's files, which may have code that a task only calls.
    """

    request: TaskRequest
    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    builtin: bool = False
    files: str = ""

    def fingerprint(self, name: str) -> str:
        """Return a hash of a task's settings and of the text of its questions and examples.

        Args:
            name: The task.
        """
        task = self.tasks[name]
        settings = json.dumps(task.dump_config(), sort_keys=True, default=str)
        found = hashlib.sha256(re.sub(" at 0x[0-9a-f]+", "", settings).encode())  # addresses of functions
        found.update(self.files.encode())
        examples = task.fewshot_docs() if task.get_config("num_fewshot") else None
        for documents in (task.eval_docs, examples or ()):
            for document in documents:
                found.update(json.dumps(document, sort_keys=True, default=str).encode())
        return found.hexdigest()[:16]


def load_tasks(request: TaskRequest, manager: Any, *, seed: int = 0) -> LoadedTasks:
    """Load a task with its data, or all tasks of one of lm-eval's groups.

    Args:
        request: The requested task or group.
        manager: What `open_tasks` returned.
        seed: Seed for the choice of examples.

    Raises:
        DataError: Its data are not available, or the task file is invalid.
    """
    _set_seeds(seed)
    try:
        loaded = manager.load([request.name])
    except OSError as error:  # no connection, or a missing data set or file
        raise DataError(
            f"{request.name} cannot get its data ({_reason(error)}); give it local data: a task file of that name "
            "in a folder, named with --include-path"
        ) from None
    except Exception as error:  # a task file can fail in as many ways as code can
        raise DataError(f"{request.name} cannot be loaded ({type(error).__name__}: {_reason(error)})") from None
    for task in loaded["tasks"].values():
        default = task.get_config("num_fewshot")
        # As lm-eval's own command does: a task that sets 0 cannot have examples.
        if default != 0:
            task.set_config("num_fewshot", (default or 0) if request.num_fewshot is None else request.num_fewshot)
        task.set_fewshot_seed(seed=seed)
    folder: str | None = manager.include_path
    return LoadedTasks(
        request,
        loaded["tasks"],
        loaded["groups"],
        builtin=folder is None,
        files="" if folder is None else folder_digest(Path(folder), _TASK_FILES),
    )


def _set_seeds(seed: int) -> None:
    """Seed the generators that tasks may draw from, as lm-eval's own command does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _reason(error: Exception) -> str:
    """Return another library's error in one line; with file names instead of paths, since reports are published."""
    text = " ".join(str(error).split())
    return re.sub(r"(?<![\w.:/])(?:/[^\s'\"/]+)+/(?=[^\s'\"/])", "", text)[:_REASON]


def language_model(model: Any, tokenizer: Any, batch_size: int, grows: bool = False) -> Any:
    """Wrap a loaded model for lm-eval.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        batch_size: Windows of 512 tokens that run at once.
        grows: Whether more may where a GPU has room.
    """
    from .shared_context import SharedContextLM

    return SharedContextLM(model, tokenizer, batch_size, grows)


def run_task(loaded: LoadedTasks, name: str, lm: Any, *, seed: int = 0) -> TaskResult:
    """Run one task on a model.

    Args:
        loaded: The tasks.
        name: Which of them.
        lm: What `language_model` returned.
        seed: Seed of the task's random choices.

    Raises:
        DataError: The task fails, or a figure of it is NaN or infinite.
    """
    import lm_eval

    _set_seeds(seed)
    try:
        results = lm_eval.evaluate(
            lm=lm, task_dict={"tasks": {name: loaded.tasks[name]}}, log_samples=True, bootstrap_iters=BOOTSTRAP_ITERS
        )
    except Exception as error:  # from the task's own template, filter or metric
        raise DataError(f"{name} failed ({type(error).__name__}: {_reason(error)})") from None
    figures = {key: _plain(value) for key, value in results["results"][name].items() if key != "alias"}
    for key, value in figures.items():
        if isinstance(value, float) and not math.isfinite(value) and "_stderr," not in key:
            raise NotFiniteError(f"{name} gives {value} as its {metric_name(key)}, which is no figure")
    questions, answers = _answers(results["samples"][name])
    return TaskResult(
        name,
        figures,
        results["n-shot"].get(name, 0),
        results["versions"].get(name),
        {key: bool(value) for key, value in (results["higher_is_better"].get(name) or {}).items()},
        questions,
        answers,
        _hub_dataset(loaded.tasks[name]) if loaded.builtin else None,
    )


def _hub_dataset(task: Any) -> str | None:
    """Return the id of the data set on the Hub that a task reads; None where its data are local files."""
    path, how = task.get_config("dataset_path"), task.get_config("dataset_kwargs") or {}
    named = isinstance(path, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None
    return path if named and not how.get("data_files") and not Path(path).exists() else None


def _answers(samples: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """Return the questions' identifiers, and each metric's value for each question, from lm-eval's samples."""
    by_filter: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_filter.setdefault(sample["filter"], []).append(sample)
    questions: tuple[str, ...] = ()
    answers = {}
    for filter_name, rows in by_filter.items():
        questions = tuple(f"{row['doc_id']}:{str(row['doc_hash'])[:12]}" for row in rows)
        for metric in rows[0]["metrics"]:
            values = [_plain(row.get(metric)) for row in rows]
            if all(isinstance(value, (int, float)) for value in values):
                answers[f"{metric},{filter_name}"] = tuple(map(float, values))
    return questions, answers


def _plain(value: Any) -> Any:
    """Return a scalar of numpy or torch as a Python number."""
    return value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value


def collect(results: Mapping[str, TaskResult], groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return results in lm-eval's form, with those of groups as lm-eval computes them.

    Args:
        results: Each task's result, by its name.
        groups: lm-eval's groups of them, by name.
    """
    figures: dict[str, Any] = {name: dict(result.metrics) for name, result in results.items()}
    counts = {name: {"effective": int(result.metrics["sample_len"])} for name, result in results.items()}
    found: dict[str, Any] = {
        "results": figures,
        "n-samples": counts,
        "n-shot": {name: result.num_fewshot for name, result in results.items()},
        "versions": {name: result.version for name, result in results.items()},
        "group_subtasks": {name: group.child_names for name, group in groups.items()},
        "hub_datasets": {name: result.hub_dataset for name, result in results.items()},
    }
    for name, group in groups.items():
        tasks = [task.task_name for task in group.get_all_tasks()]
        if all(task in results for task in tasks):
            figures[name] = group.aggregate({task: results[task].metrics for task in tasks})
            found["versions"][name] = group.version
            found["n-shot"][name] = _shared(results[task].num_fewshot for task in tasks)
            found["hub_datasets"][name] = _shared(results[task].hub_dataset for task in tasks)
    return found


def _shared(values: Iterable[Any]) -> Any:
    """Return the value that all have, or None where they differ."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    manager: Any,
    *,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> tuple[Measurement, ...]:
    """Evaluate a loaded model.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        tasks: Task names.
        manager: What `open_tasks` returned.
        num_fewshot: Examples in the prompt; None takes each task's own number.
        batch_size: Windows of 512 tokens that run at once.
        seed: Seed for the choice of examples.

    Returns:
        One measurement for each task and metric.

    Raises:
        DataError: A task's data are not available, or it fails.
    """
    loaded = [load_tasks(request, manager, seed=seed) for request in requested_tasks(tasks, num_fewshot)]
    lm = language_model(model, tokenizer, batch_size)
    found: tuple[Measurement, ...] = ()
    for each in loaded:
        results = {name: run_task(each, name, lm, seed=seed) for name in each.tasks}
        found += harness_measurements(collect(results, each.groups))
    return found


def harness_measurements(results: Any) -> tuple[Measurement, ...]:
    """Turn lm-eval's result object into measurements.

    Args:
        results: What `simple_evaluate` returned.

    Returns:
        One measurement for each task and metric. A metric of a filter other than `none` is named as lm-eval names it,
        such as `exact_match,strict-match`, because a task may filter its answers in several ways. A group's n is the
        sum over its tasks; a group whose tasks are unknown is left out.
    """
    found = []
    for task, values in results["results"].items():
        n = _effective_samples(results, task)
        if n is None:
            continue
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if metric.endswith("_stderr") or not filter_name or not isinstance(value, (int, float)):
                continue
            stderr = values.get(f"{metric}_stderr,{filter_name}")
            settings = {
                "num_fewshot": results["n-shot"].get(task, 0),
                "task_version": results["versions"].get(task),
                "filter": filter_name,
            }
            if dataset := results.get("hub_datasets", {}).get(task):
                settings["hub_dataset"] = dataset
            found.append(
                Measurement(
                    metric_name(key),
                    task,
                    float(value),
                    float(stderr) if isinstance(stderr, (int, float)) and math.isfinite(stderr) else None,
                    n,
                    settings,
                )
            )
    return tuple(found)


def metric_name(key: str) -> str:
    """Return the name in reports of lm-eval's `metric,filter`: the metric alone where nothing is filtered."""
    return key.removesuffix(",none")


def _effective_samples(results: Any, task: str) -> int | None:
    """Return how many examples a task or a group of tasks was evaluated on, or None when lm-eval does not say.

    lm-eval counts only for tasks. A group may hold groups, and two of these one task, which counts once.
    """
    counts, children = results["n-samples"], results.get("group_subtasks", {})
    tasks: set[str] = set()
    seen: set[str] = set()
    pending = [task]
    while pending:
        name = pending.pop()
        if name in counts:
            tasks.add(name)
        elif name in seen or not children.get(name):
            return None
        else:
            seen.add(name)
            pending += children[name]
    return sum(int(counts[name]["effective"]) for name in tasks)
