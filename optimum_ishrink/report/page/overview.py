"""Measurements of several models, side by side: one row per model, one column per comparable figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from ...core.table import Row
from ..conditions import RELATIVE, Conditions, conditions, differences, identity
from ..measurement import Measurement
from ..report import ModelReport, Report
from ..tables import METRICS, format_measurement
from .reading import NamedReport

_LOWER_IS_BETTER = (
    *("perplexity", "divergence", "bits_per_byte", "tokens_per_byte"),
    *("_seconds", "_bytes", "flops", "loss", "parameters"),
)


@dataclass(frozen=True)
class Model:
    """One row.

    Args:
        label: Unique name in the page.
        is_base: Whether other models were made from it.
        params: Parameters.
        bytes: Bytes of the weight files.
        base: Label of its base, or None when it is a base itself or has none.
        facts: How it was made and measured, name to text.
    """

    label: str
    is_base: bool
    params: int
    bytes: int
    base: str | None
    facts: dict[str, str]


@dataclass(frozen=True)
class Cell:
    """One figure.

    Args:
        value: The number.
        stderr: Its standard error, where it has one.
        text: The figure as the page shows it.
        ratio: For speed, the ratio to the base of the same report; both were timed in turn in one session.
        by_definition: Whether it is what a base scores against itself by definition, not a measurement.
    """

    value: float
    stderr: float | None
    text: str
    ratio: float | None = None
    by_definition: bool = False


@dataclass(frozen=True)
class Column:
    """Figures that can be compared.

    Args:
        part: `quality` or `speed`.
        metric: What was measured.
        dataset: What it was measured on.
        conditions: How it differs from other columns of the same metric and data; empty when there is no other.
        lower_is_better: Whether a lower figure is the better one.
        cells: The figures by model; a figure that was not measured is absent.
    """

    part: str
    metric: str
    dataset: str
    conditions: str
    lower_is_better: bool
    cells: dict[str, Cell]

    @property
    def title(self) -> str:
        """The metric as the page shows it."""
        return METRICS.get(self.metric, self.metric.replace("_", " "))


@dataclass(frozen=True)
class Overview:
    """All models, all comparable figures, and notes on what cannot be compared.

    Args:
        models: Bases first, then the outputs in the order given.
        columns: Quality, then speed.
        notes: What a reader must know before comparing, one line each.
    """

    models: tuple[Model, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the overview as a JSON object."""
        return asdict(self)


def build_overview(reports: Sequence[NamedReport]) -> Overview:
    """Put reports side by side.

    Args:
        reports: What `read_reports` returned.
    """
    bases = _bases(reports)
    models = [*(model for model in bases.values()), *(_output(each, bases) for each in reports)]
    entries: dict[tuple[str, str, str], dict[Conditions, list[tuple[str, Cell, NamedReport]]]] = {}
    for part in ("quality", "speed"):
        for each in reports:
            for label, report in ((_label(each, bases), each.report.base), (each.label, each.report.shrunk)):
                for found in getattr(report, part) if report is not None else ():
                    group = entries.setdefault((part, found.metric, found.dataset), {})
                    cells = group.setdefault(conditions(found, part, each.report), [])
                    cells.append((str(label), _cell(found, part, each.report, report is each.report.base), each))
    columns, notes = [], _base_notes(bases)
    separated: dict[tuple[str, str], list[str]] = {}
    for (part, metric, dataset), group in entries.items():
        descriptions = differences(group)
        outputs_by_condition = []
        for key, found_cells in group.items():
            column, disagreements = _column(part, metric, dataset, descriptions[key], found_cells)
            notes += disagreements
            if metric in RELATIVE:
                column = _with_bases(column, found_cells, bases)
            columns.append(column)
            outputs = [label for label, _, each in found_cells if label == each.label]
            outputs_by_condition.append(f"{', '.join(outputs)}: {descriptions[key]}")
        if len(group) > 1:
            separated.setdefault((dataset, "; ".join(outputs_by_condition)), []).append(METRICS.get(metric, metric))
    notes += [
        f"{dataset}: measured under different conditions, so the figures are in separate columns "
        f"({', '.join(metrics)}). {how}."
        for (dataset, how), metrics in separated.items()
    ]
    return Overview(tuple(models), tuple(columns), tuple(dict.fromkeys(notes)))


def overview_rows(overview: Overview) -> tuple[Row, list[Row]]:
    """Return the overview as a table for the terminal: one column per model, which stays narrow with many figures.

    Args:
        overview: The overview.
    """
    names = [model.label for model in overview.models]
    rows: list[Row] = [
        ("parameters", "checkpoint", *(f"{model.params:,}" for model in overview.models)),
        ("weight bytes", "checkpoint", *(f"{model.bytes:,}" for model in overview.models)),
    ]
    for column in overview.columns:
        on = f"{column.dataset}; {column.conditions}" if column.conditions else column.dataset
        found = [column.cells.get(name) for name in names]
        rows.append((column.title, on, *("not measured" if cell is None else _short(cell) for cell in found)))
    return ("", "on", *names), rows


def _short(cell: Cell) -> str:
    return cell.text if cell.ratio in (None, 1.0) else f"{cell.text} x{cell.ratio:.2f}"


def lower_is_better(metric: str) -> bool:
    """Return whether a lower value of a metric is the better one."""
    return any(part in metric for part in _LOWER_IS_BETTER) and "per_second" not in metric


def _bases(reports: Sequence[NamedReport]) -> dict[str, Model]:
    """Return the bases by identity, each with a label that is unique among bases and outputs."""
    taken = {each.label for each in reports}
    bases: dict[str, Model] = {}
    for each in reports:
        base = each.report.base
        if base is None or identity(base) in bases:
            continue
        label = base.name
        if label in taken:
            label = f"{base.name} (base)"
        if label in taken:
            label = identity(base) + " (base)"
        taken.add(label)
        bases[identity(base)] = Model(label, True, base.params, base.bytes, None, {})
    return bases


def _label(named: NamedReport, bases: dict[str, Model]) -> str | None:
    base = named.report.base
    return None if base is None else bases[identity(base)].label


def _base_notes(bases: dict[str, Model]) -> list[str]:
    if len(bases) < 2:
        return []
    names = ", ".join(model.label for model in bases.values())
    return [f"There are {len(bases)} bases ({names}): divergence and agreement are relative to each model's own base."]


def _output(named: NamedReport, bases: dict[str, Model]) -> Model:
    shrunk, plan = named.report.shrunk, named.plan
    environment = named.report.environment
    facts: dict[str, str] = {}
    if plan is not None:
        sizes = {key: (plan.shape[key], plan.new_shape[key]) for key in plan.shape}
        changed = [f"{key} {old:,} to {new:,}" for key, (old, new) in sizes.items() if old != new]
        facts["shape"] = "; ".join(changed) or "same as the base"
        if plan.choice.importance:
            facts["importance"] = plan.choice.importance
        if plan.choice.expert_importance:
            facts["expert importance"] = plan.choice.expert_importance
        if plan.choice.layer_importance:
            facts["layer importance"] = plan.choice.layer_importance
        compensation, recovery = named.report.compensation, named.report.recovery
        facts["compensation"] = compensation.method if compensation else "unknown"
        trained_for = f", for {recovery.recovery_for}" if recovery and recovery.recovery_for else ""
        facts["recovery"] = f"{recovery.loss}, {recovery.tokens:,} tokens{trained_for}" if recovery else "none"
        if recovery and recovery.peak_share is not None:
            facts["recovery's use of the device"] = f"{recovery.peak_share:.0%} of its measured peak"
    place = (environment.accelerator, environment.cpu, environment.device, environment.dtype)
    facts["measured on"] = ", ".join(each for each in place if each)
    return Model(named.label, False, shrunk.params, shrunk.bytes, _label(named, bases), facts)


def _cell(found: Measurement, part: str, report: Report, is_base: bool) -> Cell:
    ratio = None
    if part == "speed" and report.base is not None:
        ratio = 1.0 if is_base else _ratio(found, report.base)
    return Cell(found.value, found.stderr, format_measurement(found), ratio)


def _ratio(found: Measurement, base: ModelReport) -> float | None:
    for other in base.speed:
        if (other.metric, other.dataset) == (found.metric, found.dataset) and other.value:
            return found.value / other.value
    return None


def _column(
    part: str, metric: str, dataset: str, description: str, found: list[tuple[str, Cell, NamedReport]]
) -> tuple[Column, list[str]]:
    """Return the column, and a note on each figure on which reports disagree."""
    cells: dict[str, Cell] = {}
    disagreements: list[str] = []
    sessions: dict[str, list[Cell]] = {}
    for label, cell, _ in found:
        sessions.setdefault(label, []).append(cell)
    for label, same in sessions.items():
        cells[label] = same[0]
        values = [cell.value for cell in same]
        if part == "speed" and len(same) > 1:
            low, high = min(same, key=lambda cell: cell.value), max(same, key=lambda cell: cell.value)
            text = f"{low.text.split(' [')[0]} to {high.text.split(' [')[0]} in {len(same)} sessions"
            cells[label] = replace(same[0], value=median(values), text=text)
        elif part == "quality" and any(not math.isclose(value, values[0], rel_tol=1e-6) for value in values):
            disagreements.append(
                f"{METRICS.get(metric, metric)} of {label} on {dataset} differs between reports "
                f"({', '.join(f'{value:g}' for value in values)}) although the settings are equal; the first is shown."
            )
    return Column(part, metric, dataset, description, lower_is_better(metric), cells), disagreements


def _with_bases(column: Column, found: list[tuple[str, Cell, NamedReport]], bases: dict[str, Model]) -> Column:
    """Return a column of comparisons with the base, with the base's own value added, which holds by definition."""
    value = RELATIVE[column.metric]
    cells = dict(column.cells)
    for _, _, each in found:
        label = _label(each, bases)
        if label is not None:
            cells.setdefault(label, Cell(value, None, f"{value:g}, by definition", None, True))
    return replace(column, cells=cells)
