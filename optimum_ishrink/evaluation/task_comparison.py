"""How much of each task's figures the shrunk model retains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..report.measurement import Comparison
from .comparison import compare
from .harness import TaskResult, metric_name
from .paired import Stratum


def compare_tasks(
    base: Mapping[str, TaskResult],
    shrunk: Mapping[str, TaskResult],
    base_figures: Mapping[str, Any],
    shrunk_figures: Mapping[str, Any],
    groups: Mapping[str, Any],
    *,
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """Compare two models on the same tasks, and on groups of them.

    A figure is compared where it is a mean over questions, or a group's mean of such means, which is checked against
    the figure itself. Others, such as corpus BLEU, have no pairs and are left out.

    Args:
        base: The base's results by task.
        shrunk: The shrunk model's results.
        base_figures: The base's results in lm-eval's form, as `collect` returns them, with those of groups.
        shrunk_figures: The same for the shrunk model.
        groups: lm-eval's groups of the tasks, by name.
        seed: Seed of the bootstrap.
    """
    members = {name: [name] for name in shrunk}
    for name, group in groups.items():
        members[name] = list(dict.fromkeys(task.task_name for task in group.get_all_tasks()))
    found = []
    for name, tasks in members.items():
        figures = shrunk_figures["results"].get(name)
        if figures is None or not all(task in shrunk and _same_questions(base[task], shrunk[task]) for task in tasks):
            continue
        for key in figures:
            better = {shrunk[task].higher_is_better.get(key.partition(",")[0]) for task in tasks}
            values = (base_figures["results"][name].get(key), figures[key])
            strata = _strata(key, [(base[task], shrunk[task]) for task in tasks], values)
            if strata is not None and len(better) == 1 and None not in better:
                how = {"higher_is_better": bool(better.pop()), "seed": seed}
                found.append(compare(metric_name(key), name, strata, **how))  # type: ignore[arg-type]
    return tuple(found)


def _same_questions(base: TaskResult, shrunk: TaskResult) -> bool:
    return base.questions == shrunk.questions


def _strata(
    key: str, pairs: Sequence[tuple[TaskResult, TaskResult]], figures: tuple[Any, Any]
) -> list[Stratum] | None:
    """Return the questions with the weights that reproduce both figures, or None."""
    if not all(key in each.answers for pair in pairs for each in pair):
        return None
    if not all(isinstance(figure, (int, float)) for figure in figures):
        return None
    answers = [(base.answers[key], shrunk.answers[key]) for base, shrunk in pairs]
    by_size, equal = [float(len(first)) for first, _ in answers], [1.0] * len(answers)
    for weights in (by_size, equal):
        strata = [Stratum(weight, *each) for weight, each in zip(weights, answers, strict=True)]
        total = sum(weights)
        means = (
            sum(s.weight * math.fsum(s.base) / len(s.base) for s in strata) / total,
            sum(s.weight * math.fsum(s.shrunk) / len(s.shrunk) for s in strata) / total,
        )
        close = (math.isclose(*each, rel_tol=1e-9, abs_tol=1e-12) for each in zip(means, figures, strict=True))
        if all(close):
            return strata
    return None
