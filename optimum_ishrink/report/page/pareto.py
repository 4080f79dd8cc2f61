"""The Pareto-optimal models: those that no other beats in both cost and quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import RequestError, unknown_name
from .overview import Column, Model, Overview

_QUALITY = ("kl_divergence", "perplexity", "bits_per_byte", "top1_agreement")
_SPEED = ("prefill_tokens_per_second", "decode_tokens_per_second")


@dataclass(frozen=True)
class Point:
    """One model in a plot.

    Args:
        label: The model.
        x: Its cost.
        y: Its quality.
        stderr: Standard error of y, or None.
        optimal: Whether no other model is at least as good in both and better in one.
        is_base: Whether it is a base.
        short: What the plot calls it; None for the label, which is cut where it is long.
    """

    label: str
    x: float
    y: float
    stderr: float | None
    optimal: bool
    is_base: bool
    short: str | None = None


@dataclass(frozen=True)
class Plot:
    """Quality against a cost.

    Args:
        title: Title of the plot.
        x_title: Label of the x axis, with its unit.
        y_title: Label of the y axis, with its unit.
        detail: Conditions of both measurements.
        x_lower_is_better: Whether a lower cost figure is the better one.
        y_lower_is_better: Whether a lower quality figure is the better one.
        points: The models.
        missing: Models that are not plotted, by the reason.
    """

    title: str
    x_title: str
    y_title: str
    detail: str
    x_lower_is_better: bool
    y_lower_is_better: bool
    points: tuple[Point, ...]
    missing: dict[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """Return the plot as a JSON object."""
        return asdict(self)


def pareto_optimal(costs: Sequence[tuple[float, ...]]) -> list[bool]:
    """Tell which of several points are Pareto-optimal.

    Args:
        costs: Points; in every coordinate lower is better.

    Returns:
        For each, whether no other is at most as high in all coordinates and lower in one. Equal points do not beat
        each other.
    """
    return [
        not any(
            all(a <= b for a, b in zip(other, own, strict=True))
            and any(a < b for a, b in zip(other, own, strict=True))
            for other in costs
        )
        for own in costs
    ]


def plots(overview: Overview, metric: str | None = None) -> tuple[Plot, ...]:
    """Return quality against size, prefill and decode speed, for what was measured.

    Args:
        overview: What was measured.
        metric: The quality metric to plot; by default the first measured one of KL divergence, perplexity, bits per
            byte, agreement and the tasks, unless bits per byte, which other tokens leave comparable, has more models.
            Of columns that cannot be compared, the one with the most models is plotted.

    Raises:
        RequestError: The metric was not measured.
    """
    quality = _quality_column(overview, metric)
    if quality is None:
        return ()
    size = {model.label: model.params / 1e6 for model in overview.models}
    found = [_plot(overview, quality, "size", "parameters, millions", "", True, size, {})]
    for name in _SPEED:
        column = _widest([each for each in overview.columns if each.part == "speed" and each.metric == name])
        if column is None:
            continue
        # Sessions differ, so the plot shows the ratio of two models in the same session.
        ratios = {label: cell.ratio for label, cell in column.cells.items() if cell.ratio is not None}
        alone = {label: "timed without its base" for label in column.cells if label not in ratios}
        what = name.split("_")[0]
        title = f"{what} speed relative to the base in the same session"
        detail = f"{column.dataset}{_suffix(column)}"
        found.append(_plot(overview, quality, f"{what} speed", title, detail, False, ratios, alone))
    return tuple(found)


def _quality_column(overview: Overview, metric: str | None) -> Column | None:
    columns = [each for each in overview.columns if each.part == "quality"]
    names = list(dict.fromkeys(each.metric for each in columns))
    if metric is not None:
        if not names:
            raise RequestError(f"no quality was measured, so there is no {metric} to plot")
        if metric not in names:
            raise RequestError(unknown_name("metric", metric, names))
        return _widest([each for each in columns if each.metric == metric])
    first = next((name for name in (*_QUALITY, *names) if name in names), None)
    found = [_widest([each for each in columns if each.metric == name]) for name in (first, "bits_per_byte")]
    return _widest([each for each in found if each is not None])


def _widest(columns: Sequence[Column]) -> Column | None:
    return max(columns, key=lambda column: len(column.cells)) if columns else None


def _suffix(column: Column) -> str:
    return f"; {column.conditions}" if column.conditions else ""


def _plot(
    overview: Overview,
    quality: Column,
    cost: str,
    x_title: str,
    detail: str,
    x_lower: bool,
    costs: dict[str, float],
    reasons: dict[str, str],
) -> Plot:
    plotted: list[tuple[Model, float]] = []
    missing: dict[str, tuple[str, ...]] = {}
    for model in overview.models:
        x, cell = costs.get(model.label), quality.cells.get(model.label)
        if x is not None and cell is not None and math.isfinite(x) and math.isfinite(cell.value):
            plotted.append((model, x))
            continue
        lacks = [] if x is not None else [reasons.get(model.label, f"no {cost} under these conditions")]
        lacks += [] if cell is not None else [f"no {quality.title} under these conditions"]
        why = " and ".join(lacks) or "value is NaN or inf"
        missing[why] = (*missing.get(why, ()), model.label)
    sign_x, sign_y = 1 if x_lower else -1, 1 if quality.lower_is_better else -1
    optimal = pareto_optimal([(sign_x * x, sign_y * quality.cells[model.label].value) for model, x in plotted])
    points = tuple(
        Point(model.label, x, cell.value, cell.stderr, best, model.is_base)
        for (model, x), best in zip(plotted, optimal, strict=True)
        for cell in [quality.cells[model.label]]
    )
    details = "; ".join(each for each in (f"{quality.dataset}{_suffix(quality)}", detail) if each)
    return Plot(
        f"Quality against {cost}", x_title, quality.title, details, x_lower, quality.lower_is_better, points, missing
    )
