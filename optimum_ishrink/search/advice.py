"""What follows from a search, in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..planning.limits import BYTES, DECODE, TTFT, readable
from ..report.search import PLAIN, Answer, Level, SearchRecord

_WORTH = 0.95
"""A pruned recipe is worth making where it is expected to lose less than this share of what quantising alone loses."""

_DIMENSIONS = {
    "vocab_size": "rows of the vocabulary",
    "num_hidden_layers": "layers",
    "intermediate_size": "neurons",
    "num_key_value_heads": "KV groups",
}

_GOALS = {BYTES: "bytes", DECODE: "decoding speed", TTFT: "time to the first token"}


def advise(record: SearchRecord) -> list[str]:
    """Return the advice of a search.

    Args:
        record: What was measured and found.
    """
    found = [_of_answer(answer, record) for answer in record.answers]
    found += _where_to_prune(record)
    found += _bargains(record.levels)
    return found


def _of_answer(answer: Answer, record: SearchRecord) -> str:
    if answer.best is None:
        return f"{answer.target}: {answer.nearest or 'no model that was made keeps it; make more (--candidates)'}."
    best = record.model_named(answer.best)
    costs = best.costs
    figures = ", ".join(readable(name, costs[name]) for name in (BYTES, "memory", DECODE, TTFT) if name in costs)
    spread = "" if best.figures.stderr is None else f" ± {best.figures.stderr:.3f}"
    line = f"{answer.target}: {best.name}, {best.figures.divergence:.3f}{spread} nats/token from the base; {figures}."
    single = record.best_plain(answer.target)
    first = record.quantizations[0]
    if best.name.startswith(f"{PLAIN}{first}") or (best.unpruned and set(best.types.values()) == {first}):
        line += " The budget is above the model: nothing has to be removed."
    elif single is not None:
        line += f" Of plain quantisations that keep it, the best is {single.name}, at {single.figures.divergence:.3f}."
    elif _chooses_types(record):
        line += " No plain quantisation of the unpruned model keeps it."
    if answer.part_of is not None:
        line += f" It is a part of the model for {answer.part_of}."
    if answer.binding:
        line += f" What binds: {', '.join(answer.binding)}."
    return line


def _chooses_types(record: SearchRecord) -> bool:
    """Whether matrices can be made smaller without pruning: whether the unpruned model has files of several sizes."""
    return len(record.unpruned_front) > 1


def _where_to_prune(record: SearchRecord) -> list[str]:
    """Say from which size on pruning is worth it, by what is expected; nothing where all matrices have one type."""
    if not _chooses_types(record):
        return []
    smallest = record.unpruned_front[0][0]
    worth = []
    for nbytes, divergence in sorted(point for point in record.expected_front if point[0] >= smallest):
        if divergence >= _WORTH * _at(record.unpruned_front, nbytes):
            break  # at some larger sizes it may pay again; up to here it does at each
        worth.append(nbytes)
    measured = [record.model_named(answer.best) for answer in record.answers if answer.best is not None]
    unpruned = [model.costs[BYTES] for model in measured if model.unpruned]
    worth = [nbytes for nbytes in worth if nbytes < min(unpruned, default=math.inf)]
    if not worth:
        return [
            f"Down to {readable(BYTES, smallest)}, quantise alone, each matrix in its own type; for fewer bytes, "
            "prune as well."
        ]
    return [
        f"Above {readable(BYTES, max(worth))}, quantise alone, each matrix in its own type; below, prune as well: "
        f"unpruned, the smallest file has {readable(BYTES, smallest)}."
    ]


def _at(front: Sequence[tuple[float, float]], nbytes: float) -> float:
    """Return the least divergence of a front at a size."""
    return min((value for size, value in front if size <= nbytes), default=float("inf"))


def _bargains(levels: Sequence[Level]) -> list[str]:
    """Say which dimension buys what at the lowest price."""
    parts = []
    for goal, words in _GOALS.items():
        useful = [level for level in levels if level.saves.get(goal, 0.0) > 0.005]
        if not useful:
            continue
        best = min(useful, key=lambda level: level.divergence / level.saves[goal])
        parts.append(
            f"{_DIMENSIONS[best.dimension]} buy {words} ({best.saves[goal]:.0%} for {best.divergence:.3f} nats/token)"
        )
    return [f"At the lowest price, {'; '.join(parts)}."] if parts else []
