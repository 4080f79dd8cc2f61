"""Measuring base and result: what goes into the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoint.session import Session, check_independent, evaluation_sources
from ..checkpoint.source import Source
from ..checkpoint.tensors import TensorInfo, read_index
from ..report.report import ModelReport, Report
from .environment import environment
from .measure_quality import Quality, Subject, checkpoint_subject, measure_quality, measure_texts, source_subject
from .measure_speed import add_speed, check_positions


def measure(session: Session, folder: Path, *, name: str) -> Report:
    """Measure base and result: parameters and bytes from the files, quality and speed as the config asks.

    Args:
        session: The run; its source is the base.
        folder: The shrunk checkpoint.
        name: What the report calls it.
    """
    base = count(session.source.tensors, session.base_name)
    shrunk = count(read_index(folder), name)
    return _report(
        session,
        checkpoint_subject(session, folder),
        source_subject(session, "base"),
        shrunk,
        base,
        evaluate=session.config.evaluate,
        benchmark=session.config.benchmark,
    )


def count(tensors: Mapping[str, TensorInfo], name: str) -> ModelReport:
    """Return parameters and bytes of a checkpoint, read from its files' headers."""
    parameters = sum(torch.Size(info.shape).numel() for info in tensors.values())
    return ModelReport(name, parameters, sum(info.nbytes for info in tensors.values()))


def _report(
    session: Session,
    subject: Subject,
    base: Subject | None,
    shrunk_report: ModelReport,
    base_report: ModelReport | None,
    *,
    evaluate: bool,
    benchmark: bool,
) -> Report:
    """Measure a model, beside its base where there is one, and return all of it."""
    found = measure_quality(session, subject, base) if evaluate else Quality()
    shrunk = replace(shrunk_report, quality=found.shrunk)
    # The placeholder stands for a base that is not there; nothing is ever added to it.
    old = replace(base_report or shrunk_report, quality=found.base)
    if benchmark:
        subjects = {"shrunk": subject} if base is None else {"base": base, "shrunk": subject}
        reports = add_speed(
            session.config,
            {name: {"base": old, "shrunk": shrunk}[name] for name in subjects},
            {name: each.model for name, each in subjects.items()},
            {name: each.source.folder for name, each in subjects.items()},
            dtype=session.dtype,
            device=session.device,
        )
        old, shrunk = reports.get("base", old), reports["shrunk"]
    place = environment(session.device, session.dtype)
    return Report(
        None if base_report is None else old, shrunk, place, found.comparisons, found.samples, found.failures
    )


def measure_alone(session: Session, base: Source | None, *, evaluate: bool, benchmark: bool) -> Report:
    """Measure any two models, or one: nothing is cut.

    Args:
        session: The run; its source is the model in question.
        base: What it is compared with, or None.
        evaluate: Measure texts and tasks.
        benchmark: Measure speed.

    Raises:
        DataError: A text or task cannot be used.
        RequestError: The models have too few positions for what is to be timed.
    """
    config = session.config
    if benchmark:
        check_positions(config, session.source.config, *([base.config] if base is not None else []))
    if evaluate:
        check_independent(evaluation_sources(config))
        session.evaluation_windows  # noqa: B018 - a text that is too short is found before a model is loaded
        if config.tasks:
            session.task_manager  # noqa: B018 - and so is a task that does not exist
    report = count(session.source.tensors, session.source.display_name)
    base_report = None if base is None else count(base.tensors, config.base_model or base.display_name)
    return _report(
        session,
        source_subject(session, "model"),
        None if base is None else Subject(base, session, "base"),
        report,
        base_report,
        evaluate=evaluate,
        benchmark=benchmark,
    )


def measure_checkpoint(session: Session, folder: Path, *, name: str) -> Report:
    """Measure a checkpoint alone, as the config asks.

    Args:
        session: The run.
        folder: The checkpoint.
        name: What the report calls it.
    """
    config = session.config
    subject, report = checkpoint_subject(session, folder), count(read_index(folder), name)
    return _report(session, subject, None, report, None, evaluate=config.evaluate, benchmark=config.benchmark)


def measure_text(session: Session, folder: Path) -> ModelReport:
    """Measure a checkpoint on the evaluation texts, against the base.

    Args:
        session: The run; its source is the base.
        folder: The checkpoint.
    """
    found = measure_texts(session, checkpoint_subject(session, folder), source_subject(session, "base"))
    return ModelReport("", 0, 0, found.shrunk)
