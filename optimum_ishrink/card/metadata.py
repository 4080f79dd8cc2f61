"""The card's metadata, measurements included, as the Hub reads it."""

from __future__ import annotations

import math
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..architectures.composite import composites
from ..report.environment import Environment
from ..report.measurement import Measurement
from ..report.origin import Origin
from ..report.plan import Plan
from ..report.report import Report

_SETTINGS = ("num_fewshot", "task_version", "filter", "statistic", "runtime", "shared")
_MACHINE = ("accelerator", "cpu", "threads", "dtype")


def eval_results(report: Report) -> list[EvalResult]:
    """Return the shrunk model's measurements as the Hub's evaluation results.

    The Hub groups results by task, data set type, config and split, and keeps one name for a group: so every text,
    task and speed setting has its own `dataset_config`. NaN and inf are only in the report: the Hub takes metadata as
    JSON, which cannot express them.

    Args:
        report: The report.
    """
    return [
        _eval_result(measurement, part, report.environment)
        for part in ("quality", "speed")
        for measurement in getattr(report.shrunk, part)
        if math.isfinite(measurement.value)
    ]


def _eval_result(measurement: Measurement, part: str, environment: Environment) -> EvalResult:
    args: dict[str, Any] = {"n": measurement.n}
    if measurement.stderr is not None and math.isfinite(measurement.stderr):
        args["stderr"] = measurement.stderr
    how = {name: getattr(measurement, name) for name in _SETTINGS}
    if part == "speed":  # a speed means nothing without its machine
        how |= {name: getattr(measurement.environment or environment, name) for name in _MACHINE}
    args |= {name: value for name, value in how.items() if value is not None}
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
    origin: Origin,
    name: str,
) -> ModelCardData:
    """Return the card's metadata.

    Args:
        report: The report.
        plan: The plan.
        origin: Where the model comes from. Metadata may only name a base that the Hub can find; its licence
            applies to the result as well.
        name: Name of the model.
    """
    results = eval_results(report)
    structured = ["structured-pruning"] if plan.removed_share or plan.sparsity is None else []
    sparse = ["sparsity"] if plan.sparsity is not None else []
    return ModelCardData(
        base_model=origin.base_model,
        base_model_relation="finetune" if origin.base_model else None,
        language=list(origin.languages) or None,
        library_name="transformers",
        pipeline_tag="image-text-to-text" if plan.model_type in composites() else "text-generation",
        license=origin.license,
        tags=["pruning", *structured, *sparse, "optimum-ishrink", plan.model_type],
        model_name=name if results else None,
        eval_results=results or None,
    )
