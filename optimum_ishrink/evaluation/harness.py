"""Tasks of lm-evaluation-harness, by name or from a folder of task files, on a model that is already in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifacts import Measurement
from ..errors import DataError, unknown_name


def open_tasks(tasks: Sequence[str], include_path: str | None) -> Any:
    """Return lm-eval's task manager, once all tasks are known to exist.

    With an include path only that folder is read: indexing lm-eval's own thousands of tasks takes seconds.

    Args:
        tasks: Task names.
        include_path: Folder with task files, or None for lm-eval's own tasks.

    Raises:
        DataError: The folder does not exist, or it has no such task.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"include_path {include_path} is not a folder")
    manager = TaskManager(include_path=include_path, include_defaults=include_path is None)
    for task in tasks:
        if task not in manager.all_tasks:
            if include_path is None:
                raise DataError(f"unknown task {task!r}; `lm-eval ls tasks` lists lm-eval's own")
            raise DataError(unknown_name("task", task, manager.all_tasks))
    return manager


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
        DataError: A task's data cannot be had.
    """
    import lm_eval

    from .shared_context import SharedContextLM

    try:
        results = lm_eval.simple_evaluate(
            model=SharedContextLM(model, tokenizer, batch_size),
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=num_fewshot,
            log_samples=False,
            bootstrap_iters=1000,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (ConnectionError, FileNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"a task of {', '.join(tasks)} cannot get its data ({reason}); give local tasks with include_path"
        ) from None
    return harness_measurements(results)


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
            found.append(
                Measurement(
                    metric if filter_name == "none" else key,
                    task,
                    float(value),
                    float(stderr) if isinstance(stderr, (int, float)) else None,
                    n,
                    settings,
                )
            )
    return tuple(found)


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
