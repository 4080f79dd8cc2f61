"""Layout of a plot in pixels: ticks, marks, and labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .pareto import Plot, Point

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 40, 52
_CHARACTER, _LINE = 7.4, 16  # pixels, for 12-pixel bold text
_LONGEST_LABEL = 34


@dataclass(frozen=True)
class Tick:
    """A grid line: its position and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point as drawn: its position, the ends of its error bar, and its label."""

    point: Point
    x: float
    y: float
    low: float | None
    high: float | None
    label: str
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True)
class Drawing:
    """All that the template needs to draw a plot."""

    plot: Plot
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    front: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return round numbers that span a range: 1, 2 or 5 times a power of ten apart.

    Args:
        low: Lowest value.
        high: Highest value; if it equals the lowest, a range around it is used.
        count: Approximate number of intervals.
    """
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def draw(plot: Plot) -> Drawing:
    """Lay out a plot.

    Args:
        plot: A plot with at least one point.
    """
    bars = [(point.y - (point.stderr or 0), point.y + (point.stderr or 0)) for point in plot.points]
    x_values = ticks(min(point.x for point in plot.points), max(point.x for point in plot.points))
    y_values = ticks(min(low for low, _ in bars), max(high for _, high in bars))

    def x_of(value: float) -> float:
        return LEFT + (value - x_values[0]) / (x_values[-1] - x_values[0]) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_values[0]) / (y_values[-1] - y_values[0]) * (HEIGHT - TOP - BOTTOM)

    places = [(x_of(point.x), y_of(point.y)) for point in plot.points]
    texts = [point.short or _shorten(point.label) for point in plot.points]
    labels = _place_labels(places, texts)
    marks = tuple(
        Mark(
            point,
            x,
            y,
            None if point.stderr is None else y_of(point.y - point.stderr),
            None if point.stderr is None else y_of(point.y + point.stderr),
            text,
            *label,
        )
        for point, (x, y), text, label in zip(plot.points, places, texts, labels, strict=True)
    )
    return Drawing(
        plot,
        tuple(Tick(x_of(value), _number(value, x_values)) for value in x_values),
        tuple(Tick(y_of(value), _number(value, y_values)) for value in y_values),
        marks,
        _front(marks, plot.x_lower_is_better),
    )


def _number(value: float, values: Sequence[float]) -> str:
    digits = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
    return f"{value:,.{digits}f}"


def _shorten(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def _front(marks: Sequence[Mark], x_lower_is_better: bool) -> str:
    """Return the best quality available at each cost, as points of an SVG polyline: steps, not interpolated."""
    best = sorted((mark.x, mark.y) for mark in marks if mark.point.optimal)
    corners = best[:1]
    for (x, y), (next_x, next_y) in pairwise(best):
        corners += [(next_x, y) if x_lower_is_better else (x, next_y), (next_x, next_y)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def _place_labels(places: Sequence[tuple[float, float]], texts: Sequence[str]) -> list[tuple[float, float, str]]:
    """Return (x, y, anchor) for each label: beside its point, where it overlaps other labels and points least."""
    boxes = [(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    labels = []
    for (x, y), text in zip(places, texts, strict=True):
        width = _CHARACTER * len(text)
        options = [
            (x + side * 11, y + 4 + lines * _LINE, "start" if side > 0 else "end")
            for lines in (0, -1, 1, -2, 2, -3, 3)
            for side in (1, -1)
        ]
        labels.append(min(options, key=lambda option: _cost(_box(option, width), boxes)))
        boxes.append(_box(labels[-1], width))
    return labels


def _box(option: tuple[float, float, str], width: float) -> tuple[float, float, float, float]:
    x, y, anchor = option
    left = x if anchor == "start" else x - width
    return left, y - 11, left + width, y + 3


def _cost(box: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]) -> float:
    """Return the area that a box shares with others, or has outside of the plot."""
    shared = sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in others
    )
    outside = (
        max(0.0, LEFT - box[0]) + max(0.0, box[2] - WIDTH) + max(0.0, -box[1]) + max(0.0, box[3] - HEIGHT + BOTTOM)
    )
    return shared + 100 * outside
