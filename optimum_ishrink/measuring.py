"""Measuring base and result: what goes into the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .artifacts import Measurement, ModelReport, Report
from .errors import DataError
from .evaluation import environment, evaluate_tasks, open_tasks, text_measurements
from .session import Session, check_independent, display_name, evaluation_sources
from .source import Source, load_model
from .speed import add_speed, check_positions
from .tensor_files import TensorInfo, read_index


def measure(session: Session, folder: Path, *, name: str) -> Report:
    """Measure base and result: parameters and bytes from the files, quality and speed as the config asks.

    Args:
        session: The run; its source is the base.
        folder: The shrunk checkpoint.
        name: What the report calls it.
    """
    config = session.config
    base = count(session.source.tensors, session.base_name)
    shrunk = count(read_index(folder), name)
    if config.evaluate or config.benchmark:
        model = load_model(folder, session.dtype, session.device)
        if config.evaluate:
            base, shrunk = add_quality(session, base, shrunk, model, session.model)
        if config.benchmark:
            reports = {"base": base, "shrunk": shrunk}
            models, folders = (
                {"base": session.model, "shrunk": model},
                {"base": session.source.folder, "shrunk": folder},
            )
            reports = add_speed(config, reports, models, folders, dtype=session.dtype, device=session.device)
            base, shrunk = reports["base"], reports["shrunk"]
    return Report(base, shrunk, environment(session.device, session.dtype))


def count(tensors: Mapping[str, TensorInfo], name: str) -> ModelReport:
    """Return parameters and bytes of a checkpoint, read from its files' headers."""
    parameters = sum(torch.Size(info.shape).numel() for info in tensors.values())
    return ModelReport(name, parameters, sum(info.nbytes for info in tensors.values()))


def add_quality(
    session: Session, base: ModelReport, shrunk: ModelReport, model: Any, base_model: Any
) -> tuple[ModelReport, ModelReport]:
    """Measure texts and tasks, and return both reports with the figures added."""
    config = session.config
    for old, new in _texts(session, model, base_model):
        base, shrunk = replace(base, quality=base.quality + old), replace(shrunk, quality=shrunk.quality + new)
    if config.tasks:
        manager = open_tasks(config.tasks, config.include_path)
        found = [
            evaluate_tasks(
                each,
                session.tokenizer,
                config.tasks,
                manager,
                num_fewshot=config.num_fewshot,
                batch_size=config.batch_size,
                seed=config.seed,
            )
            for each in (base_model, model)
            if each is not None
        ]
        shrunk = replace(shrunk, quality=shrunk.quality + found[-1])
        if base_model is not None:
            base = replace(base, quality=base.quality + found[0])
    return base, shrunk


def measure_alone(session: Session, base: Source | None, *, evaluate: bool, benchmark: bool) -> Report:
    """Measure any two models, or one: nothing is cut.

    Args:
        session: The run; its source is the model in question.
        base: What it is compared with, or None.
        evaluate: Measure texts and tasks.
        benchmark: Measure speed.

    Raises:
        DataError: A text cannot be used, or the two models do not share a vocabulary.
        RequestError: The models have too few positions for what is to be timed.
    """
    config = session.config
    check_independent(evaluation_sources(config) if evaluate else ())
    if benchmark:
        check_positions(config, session.source.config, *([base.config] if base is not None else []))
    if evaluate and base is not None and base.config.vocab_size != session.source.config.vocab_size:
        raise DataError(
            f"the models do not share a vocabulary ({base.config.vocab_size} and {session.source.config.vocab_size} "
            "tokens), so their predictions cannot be compared"
        )
    report = count(session.source.tensors, display_name(session.source))
    base_report = None if base is None else count(base.tensors, config.base_model or display_name(base))
    base_model = None if base is None else base.load_model(session.dtype, session.device)
    # The placeholder stands for a base that is not there; nothing is ever added to it.
    pair = (base_report or report, report)
    if evaluate:
        pair = add_quality(session, *pair, session.model, base_model)
    if benchmark:
        sources = {"shrunk": session.source} if base is None else {"base": base, "shrunk": session.source}
        reports = add_speed(
            config,
            dict(zip(sources, pair[-len(sources) :], strict=True)),
            dict(zip(sources, (base_model, session.model)[-len(sources) :], strict=True)),
            {name: source.folder for name, source in sources.items()},
            dtype=session.dtype,
            device=session.device,
        )
        pair = (reports.get("base", pair[0]), reports["shrunk"])
    return Report(pair[0] if base is not None else None, pair[1], environment(session.device, session.dtype))


def measure_text(session: Session, folder: Path) -> ModelReport:
    """Measure a checkpoint on the evaluation texts, against the base.

    Args:
        session: The run; its source is the base.
        folder: The checkpoint.
    """
    model = load_model(folder, session.dtype, session.device)
    report = ModelReport("", 0, 0)
    for _, found in _texts(session, model, session.model):
        report = replace(report, quality=report.quality + found)
    return report


def _texts(
    session: Session, model: Any, base_model: Any
) -> Iterator[tuple[tuple[Measurement, ...], tuple[Measurement, ...]]]:
    """Yield what each evaluation text says of the base and of the model."""
    config = session.config
    for source, (label, windows) in zip(evaluation_sources(config), session.evaluation_windows.items(), strict=True):
        settings = {"length": config.eval_length, "seed": config.seed, "fingerprint": source.fingerprint()}
        yield text_measurements(model, base_model, windows, label, settings)
