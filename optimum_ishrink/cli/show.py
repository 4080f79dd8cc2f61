"""What the verbs print: plans, shapes, criteria, reports and analyses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.table import Row

if TYPE_CHECKING:
    from ..architectures.binding import Binding
    from ..configuration import IShrinkConfig
    from ..report.analysis import Analysis
    from ..report.plan import Plan
    from ..report.report import Report


def say(text: str) -> None:
    """Print a line on standard output."""
    sys.stdout.write(text + "\n")


def print_table(title: str, header: Row, rows: Sequence[Row]) -> None:
    """Print a table on standard output.

    Args:
        title: What it shows.
        header: Column names.
        rows: The rows; numbers are already text.
    """
    # Names of models and devices are text, never markup.
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, name in enumerate(header):
        numeric = bool(rows) and i > 0 and all(not row[i] or row[i][0].isdigit() for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    # A pipe has no width. There each row has to be one line, so that it can be searched.
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def show_plan(plan: Plan, *, layers: bool = False) -> None:
    """Print what a plan removes and what it changes in the config.

    Args:
        plan: The plan.
        layers: Also print it layer by layer.
    """
    from ..report.plan_tables import (
        CONFIG_HEADER,
        SHAPE_HEADER,
        config_rows,
        head_line,
        layer_header,
        layer_rows,
        shape_rows,
    )

    print_table(f"Plan for {plan.model}", SHAPE_HEADER, shape_rows(plan))
    if layers:
        print_table("Layer by layer", layer_header(plan), layer_rows(plan))
    print_table("Config", CONFIG_HEADER, config_rows(plan))
    if plan.vocabulary is not None:
        from ..report.vocabulary_tables import TOKENS_HEADER, VOCABULARY_HEADER, tokens_rows, vocabulary_rows

        print_table("Vocabulary", VOCABULARY_HEADER, vocabulary_rows(plan.vocabulary))
        print_table("Tokens per byte", TOKENS_HEADER, tokens_rows(plan.vocabulary))
    if plan.tied_head is not None:
        say(head_line(plan.tied_head))
    if plan.sparsity is not None:
        from ..report.sparsity_tables import PLANNED_HEADER, planned_rows

        print_table(f"Zeros by {plan.sparsity.criterion}", PLANNED_HEADER, planned_rows(plan.sparsity))
    for reason in plan.inexact:
        say(f"Not exact: {reason}. Recovery by fine-tuning is expected.")


def show_shape(
    model: str,
    shape: Mapping[str, int],
    new_shape: Mapping[str, int],
    before: int,
    after: int,
    more: Sequence[Row] = (),
) -> None:
    """Print a shape beside the one that it becomes.

    Args:
        model: The model's name.
        shape: Its shape.
        new_shape: The new one.
        before: Its parameters.
        after: The parameters of the new shape.
        more: Further rows.
    """
    rows = [(key, f"{value:,}", f"{new_shape[key]:,}") for key, value in shape.items()]
    rows.append(("parameters", f"{before:,}", f"{after:,} (-{1 - after / before:.2%})"))
    print_table(f"Shape for {model}", ("dimension", "before", "after"), [*rows, *more])


def show_runtime(binding: Binding, config: IShrinkConfig, shape: Mapping[str, int]) -> None:
    """Print what the runtime that a plan was made for would store with more bits than requested.

    Args:
        binding: The model.
        config: The request.
        shape: The new shape.
    """
    if config.for_runtime is None:
        return
    from ..edge.row_fallbacks import FALLBACK_HEADER, runtime_table

    rows, lines = runtime_table(binding, shape)
    if rows:
        print_table(f"What {config.for_runtime}'s quantisations do not fit", FALLBACK_HEADER, rows)
    for line in lines:
        say(line + ".")


def show_report(report: Report, plan: Plan | None = None) -> None:
    """Print what was measured.

    Args:
        report: The report.
        plan: The plan, for the table of a schedule's stages; None leaves it out.
    """
    from ..report import tables

    header, rows = tables.REPORT_HEADER, tables.report_rows(report, ("quality",))
    if report.base is None:
        header = (*header[:3], "model")
        rows = [(*row[:3], row[4]) for row in rows]
    print_table("Measured", header, rows)
    if report.sparsity is not None:
        from ..report.sparsity_tables import SPARSITY_HEADER, sparsity_rows

        print_table("Zeros", SPARSITY_HEADER, sparsity_rows(report.sparsity))
    if report.stages and plan is not None:
        from ..report.stages import STAGES_HEADER, stage_rows

        print_table("Stages", STAGES_HEADER, stage_rows(report.stages, plan.shape))
    if report.comparisons:
        print_table("Retained of the base", tables.RETAINED_HEADER, tables.retained_rows(report))
    for sample in report.samples:
        say(tables.sample_text(sample))
    if report.shrunk.speed:
        print_table("Speed and footprint", tables.speed_header(report), tables.speed_rows(report))


def show_analysis(analysis: Analysis) -> None:
    """Print an analysis and its advice.

    Args:
        analysis: The analysis.
    """
    from ..report.analysis_tables import SENSITIVITY_HEADER, level_header, level_rows, sensitivity_rows

    title = f"Zero-out of {analysis.model}, without compensation"
    print_table(title, level_header(analysis), level_rows(analysis))
    print_table("Layer by layer", SENSITIVITY_HEADER, sensitivity_rows(analysis))
    for line in (*analysis.notes, analysis.advice):
        say(line[0].upper() + line[1:] + ".")


def show_criteria(args: argparse.Namespace) -> Any:
    """Print the criteria that `--importance help`, or the same for layers or experts, asks for, and return them.

    Args:
        args: Parsed arguments.
    """
    from ..importance.criterion import EXPERT_CRITERIA, LAYER_CRITERIA, UNIT_CRITERIA

    header = ("name", "score", "takes", "source")
    result = {}
    for flag, title, registry in (
        ("importance", "Criteria for KV groups, query heads and neurons", UNIT_CRITERIA),
        ("expert_importance", "Criteria for experts", EXPERT_CRITERIA),
        ("layer_importance", "Criteria for layers", LAYER_CRITERIA),
    ):
        if getattr(args, flag) == "help":
            found = (registry[name] for name in registry)
            rows = [(each.name, each.formula, each.cost, each.reference) for each in found]
            if not args.json:
                print_table(title, header, rows)
            result[flag] = [dict(zip(header, row, strict=True)) for row in rows]
    return result
