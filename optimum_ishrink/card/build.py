"""The model card: words and pictures around a report. No number is in it that is not in the report or the plan."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2

from ..core.json_files import read_json
from ..core.table import escape_cell, literal_table, markdown_table
from ..report.files import CONFIG_FILE, PLAN_FILE, REPORT_FILE, SCORES_FILE
from ..report.measurement import Measurement
from ..report.plan import Plan
from ..report.plan_tables import LAYER_HEADER, SHAPE_HEADER, layer_rows, shape_rows
from ..report.report import Report
from ..report.scores import read_scores
from ..report.tables import (
    KEPT_HEADER,
    METRICS,
    RECOVERY_HEADER,
    REPORT_HEADER,
    format_measurement,
    kept_rows,
    report_rows,
)
from .figures import draw_importance, draw_quality, draw_removed, draw_speed, timed_pairs
from .leaderboards import write_benchmark_entries
from .metadata import card_data
from .summary import SUMMARY_HEADER, samples_markdown, summary_rows

FIGURES = "figures"


def render_card(
    report: Report,
    plan: Plan,
    *,
    base_name: str,
    base_id: str | None,
    license_name: str | None,
    license_details: Mapping[str, str],
    command: str,
    notes: tuple[str, ...],
    figures: Mapping[str, str],
    languages: Sequence[str] = (),
    chat: bool = False,
) -> str:
    """Return the card's text.

    Args:
        report: The report.
        plan: The plan.
        base_name: What the base is called.
        base_id: Its Hub id, if it has one.
        license_name: Its licence, if it is known.
        license_details: `license_name` and `license_link` of a licence that the Hub has no name for.
        command: The command line that makes the same model.
        notes: What was done to the base before.
        figures: `removed`, `importance`, `quality` and `speed` to the pictures' paths in the folder, where they exist.
        languages: The base's languages, as its card names them.
        chat: Whether the tokenizer has a chat template; the example then shows its use.
    """
    name = report.shrunk.name
    template = resources.files(__package__).joinpath("templates/model_card.md").read_text(encoding="utf-8")
    metadata = card_data(report, plan, base_id=base_id, license_name=license_name, name=name, languages=languages)
    metadata.__dict__.update(license_details)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return environment.from_string(template).render(
        card_data=metadata.to_yaml(),
        title=escape_cell(name),
        written_type=plan.config_changes.get("model_type", (None, plan.model_type))[1],
        base_link=f"[{base_id}](https://huggingface.co/{base_id})" if base_id else f"`{base_name}`",
        removed=f"{plan.removed_share:.2%}",
        load_name=name,
        chat=chat,
        shell_name=shlex.quote(name),
        gguf_name=shlex.quote(f"{name}-q8_0.gguf"),
        summary_table=markdown_table(SUMMARY_HEADER, summary_rows(report, plan)),
        kept_table=_kept_table(report),
        samples=samples_markdown(report.samples) if report.samples else "",
        sample_settings=report.samples[0].settings if report.samples else {},
        failures=[(escape_cell(each.dataset), escape_cell(each.reason)) for each in report.failures],
        plan=plan,
        notes=notes,
        repaired=_repaired(plan),
        recovered=_recovered(plan, report),
        shape_table=literal_table(SHAPE_HEADER, shape_rows(plan)),
        layer_table=literal_table(LAYER_HEADER, layer_rows(plan)),
        report_table=literal_table(REPORT_HEADER, report_rows(report)),
        figures={name: figures.get(name) for name in ("removed", "importance", "quality", "speed")},
        other_runtime=any("runtime" in each.settings for each in report.shrunk.speed),
        lost=(
            "What was lost shows in the KL divergence above"
            if any(each.metric == "kl_divergence" for each in report.shrunk.quality)
            else "What was lost was not measured"
        ),
        environment=report.environment,
        command=command,
    )


def _kept_table(report: Report) -> str:
    """Return the table of what is kept, without columns that have nothing to say; empty when nothing was compared."""
    rows = kept_rows(report)
    if not rows:
        return ""
    used = [i for i in range(len(KEPT_HEADER)) if any(row[i] for row in rows)]
    return literal_table(tuple(KEPT_HEADER[i] for i in used), [tuple(row[i] for i in used) for row in rows])


def _repaired(plan: Plan) -> dict[str, str] | None:
    """Return what compensation did, as the card says it; None when there was none."""
    repairs = plan.settings["compensation"].get("repairs", ())
    if not repairs:
        return None
    return {
        "count": str(sum(repair["ridge"] is not None for repair in repairs)),
        "total": str(len(repairs)),
        "before": f"{fmean(repair['error'] for repair in repairs):.1%}",
        "after": f"{fmean(repair['new_error'] for repair in repairs):.1%}",
    }


def _recovered(plan: Plan, report: Report) -> dict[str, Any] | None:
    """Return what recovery did, as the card says it; None when there was none."""
    facts = plan.settings.get("recovery")
    if facts is None:
        return None
    after = {(measurement.metric, measurement.dataset): measurement for measurement in report.shrunk.quality}
    rows = [
        (
            METRICS[entry["metric"]],
            entry["dataset"],
            format_measurement(Measurement(**entry)),
            format_measurement(found),
        )
        for entry in facts["before"]
        if (found := after.get((entry["metric"], entry["dataset"]))) is not None
    ]
    return {
        "parameters": f"{facts['trained_parameters']:,}",
        "trained": facts["trained"],
        "steps": f"{facts['best_step']:,}",
        "tokens": f"{facts['tokens']:,}",
        "data": ", ".join(facts["data"]),
        "loss": facts["loss"],
        "teacher": facts["teacher"] or "the base",
        "windows": str(facts["held_out_windows"]),
        "helped": facts.get("helped", True),
        "solved": f"{facts['held_out_loss_solved']:.4f}" if "held_out_loss_solved" in facts else "",
        "before": f"{facts['held_out_loss_before']:.4f}",
        "after": f"{facts['held_out_loss']:.4f}",
        "table": literal_table(RECOVERY_HEADER, rows) if rows else "",
    }


def build_card(folder: Path) -> None:
    """Write README.md, the figures and the results on the Hub's benchmarks of an output folder from its artifacts.

    Args:
        folder: An output folder.

    Raises:
        SourceError: It lacks an artifact.
    """
    plan = Plan.from_json(read_json(folder / PLAN_FILE))
    report = Report.from_json(read_json(folder / REPORT_FILE))
    read_json(folder / CONFIG_FILE)
    figures = _draw(folder, plan, report)
    origin = plan.settings["origin"]
    text = render_card(
        report,
        plan,
        base_name=plan.model,
        base_id=origin["base_model"],
        license_name=origin["license"],
        license_details=origin["license_details"],
        command=origin["command"],
        notes=tuple(origin["notes"]),
        figures=figures,
        languages=tuple(origin.get("languages", ())),
        chat=_has_chat_template(folder),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    write_benchmark_entries(report, folder)


def _draw(folder: Path, plan: Plan, report: Report) -> dict[str, str]:
    """Draw the pictures that there is something to draw for; return their paths in the folder."""
    (folder / FIGURES).mkdir(exist_ok=True)
    figures: dict[str, str] = {}

    def path_of(name: str) -> Path:
        figures[name] = f"{FIGURES}/{name}.png"
        return folder / figures[name]

    draw_removed(plan, path_of("removed"))
    scores = read_scores(folder / SCORES_FILE) if (folder / SCORES_FILE).is_file() else {}
    if scores.keys() & plan.shape.keys():  # a merge of KV heads alone scores nothing
        draw_importance(plan, scores, path_of("importance"))
    if any(found.ratio is not None for found in report.comparisons):
        draw_quality(report, path_of("quality"))
    if timed_pairs(report):
        draw_speed(report, path_of("speed"))
    return figures


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get("chat_template"))
