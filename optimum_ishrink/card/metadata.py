"""The card's metadata: what the Hub reads of it, measurements included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..report.measurement import Measurement
from ..report.plan import Plan
from ..report.report import Report

_SETTINGS = ("num_fewshot", "task_version", "filter", "statistic", "runtime")
_MACHINE = ("accelerator", "cpu", "threads", "dtype")


def eval_results(report: Report) -> list[EvalResult]:
    """Return the shrunk model's measurements as the Hub's evaluation results.

    The Hub groups results by task, data set type, config and split, and keeps one name for a group: so every text,
    task and speed setting is a `dataset_config` of its own. A figure that is not finite stays in the report alone:
    the Hub takes metadata as JSON, which has no word for it.

    Args:
        report: The report.
    """
    return [
        _eval_result(measurement, part, report.environment)
        for part in ("quality", "speed")
        for measurement in getattr(report.shrunk, part)
        if math.isfinite(measurement.value)
    ]


def _eval_result(measurement: Measurement, part: str, environment: Mapping[str, Any]) -> EvalResult:
    args: dict[str, Any] = {"n": measurement.n}
    if measurement.stderr is not None and math.isfinite(measurement.stderr):
        args["stderr"] = measurement.stderr
    args |= {key: measurement.settings[key] for key in _SETTINGS if measurement.settings.get(key) is not None}
    if part == "speed":  # a speed says nothing without its machine
        where = measurement.settings.get("environment", environment)
        args |= {key: where[key] for key in _MACHINE if where.get(key) is not None}
    return EvalResult(
        task_type="text-generation",
        task_name="Text generation",
        dataset_type="optimum-ishrink-speed" if part == "speed" else "optimum-ishrink-quality",
        dataset_name=measurement.dataset,
        dataset_config=measurement.dataset,
        metric_type=measurement.metric,
        metric_name=measurement.metric,
        metric_value=measurement.value,
        metric_args=args,
        verified=False,
    )


def card_data(
    report: Report,
    plan: Plan,
    *,
    base_id: str | None,
    license_name: str | None,
    name: str,
    languages: Sequence[str] = (),
) -> ModelCardData:
    """Return the card's metadata.

    Args:
        report: The report.
        plan: The plan.
        base_id: Hub id of the base, or None when it has none; metadata may only name what the Hub can find.
        license_name: The base's licence, if it is known; it is the result's too.
        name: Name of the model.
        languages: The base's languages, as its card names them.
    """
    results = eval_results(report)
    return ModelCardData(
        base_model=base_id,
        base_model_relation="finetune" if base_id else None,
        language=list(languages) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=license_name,
        tags=["pruning", "structured-pruning", "optimum-ishrink", plan.model_type],
        model_name=name if results else None,
        eval_results=results or None,
    )
