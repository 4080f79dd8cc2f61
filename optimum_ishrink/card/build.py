"""The model card: text and figures around a report. Every number in it is from the report or the plan."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2

from ..architectures.composite import composites
from ..core.durable import replace_file
from ..core.json_files import read_json
from ..core.table import Row, escape_cell, literal_table, markdown_table
from ..errors import SourceError
from ..report.budget import BudgetRecord
from ..report.compensation import CompensationRecord
from ..report.conditions import conditions
from ..report.draft import DRAFT_FILE, DraftRecord
from ..report.draft_tables import DRAFT_HEADER, draft_rows, draft_sentences
from ..report.files import CONFIG_FILE, PLAN_FILE, SCORES_FILE
from ..report.origin import Origin
from ..report.plan import Plan
from ..report.plan_tables import SHAPE_HEADER, head_line, layer_header, layer_rows, shape_rows
from ..report.report import Report
from ..report.run import Run
from ..report.scores import read_scores
from ..report.search_tables import budget_header, budget_rows
from ..report.sparsity_tables import SPARSITY_HEADER, sparsity_rows
from ..report.stages import STAGES_HEADER, stage_rows
from ..report.tables import (
    METRICS,
    RECOVERY_HEADER,
    REPORT_HEADER,
    RETAINED_HEADER,
    format_measurement,
    report_rows,
    retained_rows,
)
from ..report.vocabulary_tables import TOKENS_HEADER, VOCABULARY_HEADER, tokens_rows, vocabulary_rows
from .devices import device_parts, draw_device, without_devices
from .figures import draw_importance, draw_quality, draw_removed, draw_speed, timed_pairs
from .leaderboards import write_benchmark_entries
from .metadata import card_data
from .summary import SUMMARY_HEADER, samples_markdown, summary_rows

FIGURES = "figures"


def render_card(
    report: Report,
    plan: Plan,
    *,
    figures: Mapping[str, str],
    chat: bool = False,
    draft: DraftRecord | None = None,
) -> str:
    """Return the card's text.

    Args:
        report: The report.
        plan: The plan.
        figures: `removed`, `importance`, `quality`, `speed` and names of devices to the figures' paths in the folder,
            where they exist.
        chat: Whether the tokenizer has a chat template; the example then uses it.
        draft: What was measured of the model as a draft of its base; None where it was not made for that.
    """
    name, origin = report.shrunk.name, report.origin or Origin()
    base_id = origin.base_model
    template = resources.files(__package__).joinpath("templates/model_card.md").read_text(encoding="utf-8")
    metadata = card_data(report, plan, origin=origin, name=name)
    metadata.__dict__.update(origin.license_details)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return environment.from_string(template).render(
        card_data=metadata.to_yaml(),
        title=escape_cell(name),
        written_type=plan.config_changes.get("model_type", (None, plan.model_type))[1],
        base_link=f"[{base_id}](https://huggingface.co/{base_id})" if base_id else f"`{plan.model}`",
        removed=f"{plan.removed_share:.2%}",
        load_name=name,
        chat=chat,
        has_other_parts=plan.model_type in composites(),
        shell_name=shlex.quote(name),
        gguf_name=shlex.quote(f"{name}-q8_0.gguf"),
        summary_table=markdown_table(SUMMARY_HEADER, summary_rows(report, plan)),
        retained_table=_retained_table(report),
        samples=samples_markdown(report.samples) if report.samples else "",
        sample=report.samples[0] if report.samples else None,
        failures=[(escape_cell(each.dataset), escape_cell(each.reason)) for each in report.failures],
        plan=plan,
        notes=origin.notes,
        refitted=_refitted(report.compensation),
        recovered=_recovered(report),
        stages_table=literal_table(STAGES_HEADER, stage_rows(report.stages, plan.shape)) if report.stages else "",
        shape_table=literal_table(SHAPE_HEADER, shape_rows(plan)),
        layer_table=literal_table(layer_header(plan), layer_rows(plan)),
        head_line=head_line(plan.tied_head) if plan.tied_head else "",
        vocabulary_table=literal_table(VOCABULARY_HEADER, vocabulary_rows(plan.vocabulary)) if plan.vocabulary else "",
        tokens_table=literal_table(TOKENS_HEADER, tokens_rows(plan.vocabulary)) if plan.vocabulary else "",
        sparsity=report.sparsity,
        sparsity_table=(
            _without_empty_columns(SPARSITY_HEADER, sparsity_rows(report.sparsity)) if report.sparsity else ""
        ),
        cuts_layers=len(plan.layers) < plan.shape["num_hidden_layers"] or bool(plan.units),
        report_table=literal_table(REPORT_HEADER, report_rows(without_devices(report))),
        devices=[part.to_card(figures) for part in device_parts(report)],
        figures={name: figures.get(name) for name in ("removed", "importance", "quality", "speed")},
        other_runtime=any(each.runtime is not None for each in report.shrunk.speed),
        shared=_shared(report),
        lost=(
            "The KL divergence above shows the loss of quality"
            if any(each.metric == "kl_divergence" for each in report.shrunk.quality)
            else "The loss of quality was not measured"
        ),
        environment=report.environment,
        command=origin.command,
        budget=report.budget,
        budget_table=_budget_table(report.budget) if report.budget else "",
        draft=draft,
        draft_table=literal_table(DRAFT_HEADER, draft_rows(draft)) if draft else "",
        draft_sentences=[escape_cell(line) for line in draft_sentences(draft)] if draft else [],
    )


def _budget_table(budget: BudgetRecord) -> str:
    """Return the table of a model and its neighbours on the front without empty columns."""
    return _without_empty_columns(budget_header(budget), budget_rows(budget))


def _shared(report: Report) -> str:
    """Return the least share of predicted tokens at which the base was compared, where it has more tokens; else ''."""
    shares = [each.shared for each in report.shrunk.quality if each.carried and each.shared is not None]
    return f"{min(shares):.1%}" if shares else ""


def _retained_table(report: Report) -> str:
    """Return the table of retained figures without empty columns; an empty string when nothing was compared."""
    rows = retained_rows(report)
    if not rows:
        return ""
    return _without_empty_columns(RETAINED_HEADER, rows)


def _without_empty_columns(header: Row, rows: Sequence[Row]) -> str:
    used = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return literal_table(tuple(header[i] for i in used), [tuple(row[i] for i in used) for row in rows])


def _refitted(compensation: CompensationRecord | None) -> dict[str, str] | None:
    """Return what compensation did, as the card presents it; None when there was none."""
    if compensation is None or not compensation.repairs:
        return None
    repairs = compensation.repairs
    return {
        "count": str(sum(repair.ridge is not None for repair in repairs)),
        "total": str(len(repairs)),
        "before": f"{fmean(repair.error for repair in repairs):.1%}",
        "after": f"{fmean(repair.new_error for repair in repairs):.1%}",
    }


def _recovered(report: Report) -> dict[str, Any] | None:
    """Return what recovery did, as the card presents it; None when there was none."""
    found = report.recovery
    if found is None:
        return None
    after = {(measurement.metric, measurement.dataset): measurement for measurement in report.shrunk.quality}
    rows = [
        (
            METRICS[before.metric],
            before.dataset,
            format_measurement(before),
            format_measurement(after[before.metric, before.dataset]),
        )
        for before in found.before
        if (now := after.get((before.metric, before.dataset))) is not None
        # Measured again since, on other windows or elsewhere, it says nothing of what recovery did.
        and conditions(before, "quality", report) == conditions(now, "quality", report)
    ]
    return {
        "parameters": f"{found.trained_parameters:,}",
        "trained": found.trained,
        "steps": f"{found.best_step:,}",
        "tokens": f"{found.tokens:,}",
        "data": ", ".join(found.data),
        "loss": found.loss,
        "teacher": found.teacher or "the base",
        "windows": str(found.held_out_windows),
        "helped": found.helped,
        "refitted": "" if found.held_out_loss_solved is None else f"{found.held_out_loss_solved:.4f}",
        "before": f"{found.held_out_loss_before:.4f}",
        "after": f"{found.held_out_loss:.4f}",
        "on_policy": "" if found.on_policy is None else f"{found.on_policy:.0%}",
        "trained_for": found.recovery_for,
        "rounded": found.rounding == "calibrated",
        "stored": "" if found.held_out_loss_stored is None else f"{found.held_out_loss_stored:.4f}",
        "peak_share": "" if found.peak_share is None else f"{found.peak_share:.0%}",
        "table": literal_table(RECOVERY_HEADER, rows) if rows else "",
    }


def build_card(folder: Path) -> None:
    """Write README.md, the figures and the Hub benchmark results of an output folder from its artifacts.

    Args:
        folder: An output folder.

    Raises:
        SourceError: An artifact is missing or damaged.
    """
    run = Run.read(folder)
    if run.plan is None:
        raise SourceError(f"{folder / PLAN_FILE} does not exist")
    read_json(folder / CONFIG_FILE)
    figures = _draw_figures(folder, run.plan, run.report)
    draft = DraftRecord.read(folder) if (folder / DRAFT_FILE).is_file() else None
    text = render_card(run.report, run.plan, figures=figures, chat=_has_chat_template(folder), draft=draft)
    replace_file(folder / "README.md", text.encode())
    write_benchmark_entries(run.report, folder)


def _draw_figures(folder: Path, plan: Plan, report: Report) -> dict[str, str]:
    """Draw the figures that there are data for; return their paths in the folder."""
    (folder / FIGURES).mkdir(exist_ok=True)
    figures: dict[str, str] = {}

    def path_of(name: str) -> Path:
        figures[name] = f"{FIGURES}/{name}.png"
        return folder / figures[name]

    draw_removed(plan, path_of("removed"))
    scores = read_scores(folder / SCORES_FILE) if (folder / SCORES_FILE).is_file() else {}
    if scores.keys() & plan.shape.keys():  # merging KV heads alone needs no scores
        draw_importance(plan, scores, path_of("importance"))
    if any(found.ratio is not None for found in report.comparisons):
        draw_quality(report, path_of("quality"))
    if timed_pairs(report):
        draw_speed(report, path_of("speed"))
    for part in device_parts(report):
        if part.compared:
            draw_device(part, path_of(part.figure))
    return figures


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get("chat_template"))
