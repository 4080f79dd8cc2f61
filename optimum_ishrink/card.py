"""The model card: words and pictures around a report. No number is in it that is not in the report or the plan."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
import torch
from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open
from safetensors.torch import save

from .artifacts import CONFIG_FILE, PLAN_FILE, REPORT_FILE, SCORES_FILE, Measurement, Plan, Report, read_json
from .figures import draw_importance, draw_speed, timed_pairs
from .tables import (
    LAYER_HEADER,
    METRICS,
    RECOVERY_HEADER,
    REPORT_HEADER,
    SHAPE_HEADER,
    format_measurement,
    layer_rows,
    markdown_table,
    report_rows,
    shape_rows,
)

FIGURES = "figures"


def eval_results(report: Report) -> list[EvalResult]:
    """Return the shrunk model's measurements as the Hub's evaluation results.

    The Hub groups results by task, data set type, config and split, and keeps one name for a group: so every text,
    task and speed setting is a `dataset_config` of its own.

    Args:
        report: The report.
    """
    results = []
    for part in ("quality", "speed"):
        for measurement in getattr(report.shrunk, part):
            results.append(_eval_result(measurement, part))
    return results


def _eval_result(measurement: Measurement, part: str) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        task_name="Text generation",
        dataset_type="optimum-ishrink-speed" if part == "speed" else "optimum-ishrink-quality",
        dataset_name=measurement.dataset,
        dataset_config=measurement.dataset,
        metric_type=measurement.metric,
        metric_name=measurement.metric,
        metric_value=measurement.value,
        metric_args={"n": measurement.n, "stderr": measurement.stderr},
        verified=False,
    )


def card_data(
    report: Report, plan: Plan, *, base_id: str | None, license_name: str | None, name: str
) -> ModelCardData:
    """Return the card's metadata.

    Args:
        report: The report.
        plan: The plan.
        base_id: Hub id of the base, or None when it has none; metadata may only name what the Hub can find.
        license_name: The base's licence, if it is known; it is the result's too.
        name: Name of the model.
    """
    results = eval_results(report)
    return ModelCardData(
        base_model=base_id,
        base_model_relation="finetune" if base_id else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=license_name,
        tags=["pruning", "structured-pruning", "optimum-ishrink", plan.model_type],
        model_name=name if results else None,
        eval_results=results or None,
    )


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
        figures: `importance` and `speed` to the pictures' paths in the folder, where they exist.
    """
    name = report.shrunk.name
    template = resources.files(__package__).joinpath("templates/model_card.md").read_text(encoding="utf-8")
    metadata = card_data(report, plan, base_id=base_id, license_name=license_name, name=name)
    metadata.__dict__.update(license_details)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return environment.from_string(template).render(
        card_data=metadata.to_yaml(),
        title=name,
        written_type=plan.config_changes.get("model_type", (None, plan.model_type))[1],
        base_link=f"[{base_id}](https://huggingface.co/{base_id})" if base_id else f"`{base_name}`",
        removed=f"{plan.removed_share:.2%}",
        load_name=name,
        plan=plan,
        notes=notes,
        repaired=_repaired(plan),
        recovered=_recovered(plan, report),
        shape_table=markdown_table(SHAPE_HEADER, shape_rows(plan)),
        layer_table=markdown_table(LAYER_HEADER, layer_rows(plan)),
        report_table=markdown_table(REPORT_HEADER, report_rows(report)),
        importance_figure=figures.get("importance"),
        speed_figure=figures.get("speed"),
        environment=report.environment,
        command=command,
    )


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
        "before": f"{facts['held_out_loss_before']:.4f}",
        "after": f"{facts['held_out_loss']:.4f}",
        "table": markdown_table(RECOVERY_HEADER, rows) if rows else "",
    }


def write_scores(scores: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write importance scores as safetensors.

    Args:
        scores: Config key to scores.
        path: The new file.
    """
    path.write_bytes(save({name: values.contiguous() for name, values in scores.items()}, {"format": "pt"}))


def read_scores(path: Path) -> dict[str, torch.Tensor]:
    """Read importance scores.

    Args:
        path: A file that `write_scores` wrote.
    """
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def build_card(folder: Path) -> None:
    """Write README.md and the figures of an output folder from its artifacts.

    Args:
        folder: An output folder.

    Raises:
        SourceError: It lacks an artifact.
    """
    plan = Plan.from_json(read_json(folder / PLAN_FILE))
    report = Report.from_json(read_json(folder / REPORT_FILE))
    read_json(folder / CONFIG_FILE)
    figures: dict[str, str] = {}
    (folder / FIGURES).mkdir(exist_ok=True)
    scores = read_scores(folder / SCORES_FILE) if (folder / SCORES_FILE).is_file() else {}
    if scores.keys() & plan.shape.keys():  # a merge of KV heads alone scores nothing
        figures["importance"] = f"{FIGURES}/importance.png"
        draw_importance(plan, scores, folder / figures["importance"])
    if timed_pairs(report):
        figures["speed"] = f"{FIGURES}/speed.png"
        draw_speed(report, folder / figures["speed"])
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
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
