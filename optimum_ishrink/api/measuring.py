"""Measuring a model, and adding the measurements to its report."""

from __future__ import annotations

from pathlib import Path

from ..card.update import can_update, update_report
from ..checkpoint.session import Session
from ..checkpoint.source import Source, open_source
from ..configuration import IShrinkConfig
from ..evaluation.stage import Evaluation
from ..report.report import Report
from .given_model import given_model


def measure(session: Session, config: IShrinkConfig, base: str | Path | Source | None, *, update: bool) -> Report:
    """Measure the model of a session, compared with a base where one is given.

    Args:
        session: The run.
        config: What is measured.
        base: The base, or None.
        update: Add the measurements to the report and card of the model's folder, where it was cut from this base.

    Returns:
        The measurements.
    """
    session.needs_whole = None  # what is measured on is never sampled from the model
    source = session.source
    other = base if isinstance(base, Source) or base is None else open_source(given_model(base, "base"))
    if update:
        update = other is not None and not source.is_copy and can_update(source.folder, other, config.base_model)
    models = [source] if other is None else [source, other]
    for model in models:
        model.check_architecture()
    evaluation = Evaluation(session, config)
    evaluation.check(*models)
    report = evaluation.measure_source(other)
    if update:
        update_report(source.folder, report)
    return report
