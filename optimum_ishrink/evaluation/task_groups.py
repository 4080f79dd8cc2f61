"""Sets of tasks under one name, each with the number of examples of its definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DataError

GROUPS: dict[str, tuple[tuple[str, ...], int]] = {
    "thesis-zero-shot": (("openbookqa", "winogrande", "hellaswag"), 0),
    "thesis-few-shot": (("mmlu",), 5),
}
"""Name to tasks and examples in the prompt: the sets that the iShrink thesis reports."""


@dataclass(frozen=True)
class TaskRequest:
    """One requested task, or one of lm-eval's groups of tasks.

    Args:
        name: Its name.
        num_fewshot: Examples in the prompt; None for the task's own number.
    """

    name: str
    num_fewshot: int | None


def requested_tasks(names: Sequence[str], num_fewshot: int | None) -> tuple[TaskRequest, ...]:
    """Return the tasks that names stand for, each once.

    Args:
        names: Tasks, lm-eval's groups, and the groups of this module.
        num_fewshot: Examples in the prompt of every task; None for each task's own number.

    Raises:
        DataError: A number of examples is given for a group that defines one, or one task is requested with two.
    """
    found: dict[str, TaskRequest] = {}
    for name in names:
        tasks, examples = GROUPS.get(name, ((name,), None))
        if examples is not None and num_fewshot not in (None, examples):
            raise DataError(
                f"{name} is {examples}-shot by definition; leave out num_fewshot, "
                f"or name its tasks: {', '.join(tasks)}"
            )
        for task in tasks:
            request = TaskRequest(task, num_fewshot if examples is None else examples)
            if found.setdefault(task, request) != request:
                raise DataError(
                    f"{task} is requested with two numbers of examples, and a report holds one; measure it in two runs"
                )
    return tuple(found.values())
