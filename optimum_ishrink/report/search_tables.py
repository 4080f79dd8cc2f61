"""Tables of a search."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from string import ascii_uppercase

from ..core.table import Row
from .budget import BudgetRecord
from .search import PLAIN, Figures, Level, SearchRecord, what_runs

LEVELS_HEADER: Row = ("dimension", "size", "KL, nats/token", "bytes", "memory", "first token", "decode")


def models_header(record: SearchRecord) -> Row:
    """Return the header of a table of all models.

    Args:
        record: The search.
    """
    return (
        "model",
        "KL, nats/token",
        "expected",
        what_runs(record.runtime),
        "memory",
        "first token",
        "decode",
        "keeps",
    )


def budget_header(budget: BudgetRecord) -> Row:
    """Return the header of a table of a model and its neighbours on the front.

    Args:
        budget: What the model was searched for.
    """
    return ("model", "KL, nats/token", what_runs(budget.runtime), "memory", "first token", "decode")


def models_rows(record: SearchRecord) -> list[Row]:
    """Return the rows of a table of all models, under `models_header`, the smallest first.

    Args:
        record: The search.
    """
    best = {answer.best for answer in record.answers}
    rows: list[Row] = []
    for model in sorted(record.models, key=lambda each: each.costs["bytes"]):
        rows.append(
            (
                model.name + (" (best)" if model.name in best else ""),
                _divergence(model.figures),
                f"{model.expected.divergence:.3f}",
                *_costs(model.costs),
                "; ".join(model.keeps),
            )
        )
    return rows


def budget_rows(budget: BudgetRecord) -> list[Row]:
    """Return the rows of a table of a model and its neighbours on the front, under `budget_header`.

    Args:
        budget: What the model was searched for.
    """
    return [(each.name, _divergence(each.figures), *_costs(each.figures.costs)) for each in budget.models]


def _divergence(figures: Figures) -> str:
    return f"{figures.divergence:.3f}" + ("" if figures.stderr is None else f" ± {figures.stderr:.3f}")


def _costs(costs: Mapping[str, float]) -> Row:
    return (
        _megabytes(costs, "bytes"),
        _megabytes(costs, "memory"),
        f"{costs['ttft'] * 1000:,.0f} ms" if "ttft" in costs else "",
        f"{costs['decode']:,.1f} t/s" if "decode" in costs else "",
    )


def short_names(record: SearchRecord) -> dict[str, str]:
    """Return what plots call the models, by their names: plain ones by their type, the others by letters.

    Args:
        record: The search. The smallest of the models that were made is A.
    """
    letters = (f"{letter}{round_ or ''}" for round_ in itertools.count() for letter in ascii_uppercase)
    found = {}
    for model in sorted(record.models, key=lambda each: each.costs["bytes"]):
        of_type = model.name.removeprefix(PLAIN).partition(",")[0]
        found[model.name] = of_type if model.is_plain else next(letters)
    return found


def _megabytes(costs: Mapping[str, float], name: str) -> str:
    return f"{costs[name] / 1e6:,.2f} MB" if name in costs else ""


def levels_rows(levels: tuple[Level, ...]) -> list[Row]:
    """Return the rows of a table of what each dimension costs, under `LEVELS_HEADER`.

    Args:
        levels: What was measured.
    """

    def share(level: Level, name: str) -> str:
        if name not in level.saves:
            return ""
        return f"+{level.saves[name]:.1%}" if name == "decode" else f"-{level.saves[name]:.1%}"

    return [
        (
            level.dimension,
            f"{level.size:,}",
            f"{level.divergence:.3f}",
            *(share(level, name) for name in ("bytes", "memory", "ttft", "decode")),
        )
        for level in levels
    ]


def conditions_line(record: SearchRecord) -> str:
    """Return a line that says what was measured, and how.

    Args:
        record: The search.
    """
    threads = "1 thread" if record.threads == 1 else f"{record.threads} threads"
    name = "" if record.build.startswith(record.runtime) else record.runtime
    runtime = ", ".join(part for part in (name, threads, record.build) if part)
    text = f"{record.windows} windows of {record.length} tokens of {', '.join(record.texts)}"
    rounded = ""
    if record.rounding == "calibrated":
        rounded = (
            " Weights are rounded for what matrices compute on the calibration text; plain types have the nearest."
        )
    return (
        f"KL divergence from the base over {text}, which nothing was calibrated on. Times of a prompt of "
        f"{record.prompt} tokens, memory with a context of {record.context}: {runtime}. The best model is chosen on "
        f"this text; measure it on another.{rounded}"
    )
