"""The page of a search: quality against bytes, memory, time to the first token and decoding, every model a mark."""

from __future__ import annotations

from pathlib import Path

from ..search import PLAIN, FoundModel, SearchRecord, types_by_kind, what_runs
from ..search_tables import (
    LEVELS_HEADER,
    conditions_line,
    levels_rows,
    models_header,
    models_rows,
    short_names,
)
from .pareto import Plot, Point, pareto_optimal
from .render import load_template, write_page
from .svg import draw

_AXES = (
    ("bytes", "size", "bytes of the {runs}, MB", 1e-6, True),
    ("memory", "memory", "memory, MB", 1e-6, True),
    ("ttft", "time to the first token", "time to the first token, ms", 1e3, True),
    ("decode", "decoding", "decoded tokens per second", 1.0, False),
)


def search_plots(record: SearchRecord) -> list[Plot]:
    """Return the plots of a search: divergence against each cost that is known of two models or more.

    Args:
        record: The search.
    """
    found, short = [], short_names(record)
    for metric, title, x_title, scale, lower in _AXES:
        models = [each for each in record.models if each.measured is not None and metric in each.costs]
        if len(models) < 2:
            continue
        values = [each.costs[metric] * scale for each in models]
        optimal = pareto_optimal(
            [(x if lower else -x, each.figures.divergence) for x, each in zip(values, models, strict=True)]
        )
        points = tuple(
            Point(each.name, x, each.figures.divergence, each.figures.stderr, best, each.unpruned, short[each.name])
            for x, each, best in zip(values, models, optimal, strict=True)
        )
        found.append(
            Plot(
                title=f"Quality against {title}",
                x_title=x_title.format(runs=what_runs(record.runtime)),
                y_title="KL divergence from the base, nats/token",
                detail="Measured on the text that was chosen on",
                x_lower_is_better=lower,
                y_lower_is_better=True,
                points=points,
                missing={},
            )
        )
    return found


def render_search(record: SearchRecord) -> str:
    """Return the page's HTML.

    Args:
        record: The search.
    """
    plots = search_plots(record)
    short = short_names(record)

    def named(name: str) -> str:
        """Return a model's name with the letter that plots call it by."""
        letter = short[name.removesuffix(" (best)")]
        return name if name.startswith(PLAIN) else f"{letter}: {name}"

    targets = "; ".join(answer.target for answer in record.answers)
    return load_template("search.html").render(
        title=f"{record.model}: {targets}",
        record=record,
        conditions=conditions_line(record),
        drawings=[draw(plot) for plot in plots],
        optimal={plot.title: [point.label for point in plot.points if point.optimal] for plot in plots},
        models=(models_header(record), [(named(row[0]), *row[1:]) for row in models_rows(record)]),
        recipes=[
            (
                named(each.name),
                _shape(record, each),
                _types(each),
            )
            for each in record.models
        ],
        levels=(LEVELS_HEADER, levels_rows(record.levels)),
    )


def _shape(record: SearchRecord, model: FoundModel) -> str:
    changed = [f"{key}={size}" for key, size in model.shape.items() if size != record.base[key]]
    return ", ".join(changed) or "the base's"


def _types(model: FoundModel) -> str:
    if len(names := set(model.types.values())) == 1:
        return names.pop()
    return "; ".join(f"{kind} {types}" for kind, types in types_by_kind(model.types).items())


def write_search_page(record: SearchRecord, path: Path) -> None:
    """Write the page of a search.

    Args:
        record: The search.
        path: The file.
    """
    write_page(render_search(record), path, overwrite=True)
