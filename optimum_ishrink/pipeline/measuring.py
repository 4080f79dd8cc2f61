"""The stages that measure, and that write records and card."""

from __future__ import annotations

from dataclasses import replace

from ..card.build import build_card
from ..configuration import IShrinkConfig
from ..report.origin import Origin
from ..report.run import Run
from ..text.sources import TextSource, parse_sources
from .job import Job


def check_measuring(job: Job) -> None:
    """Check the evaluation texts and tasks, and that what is timed fits the model's positions."""
    student = job.student or job.session.source
    compared = [job.session.source] if job.session.source is not student else []
    job.evaluation.check(student, *compared, others=_other_texts(job.config))


def _other_texts(config: IShrinkConfig) -> dict[str, tuple[TextSource, ...]]:
    read = {"calibration": parse_sources(config.calibration)}
    if config.recovers:
        read["recovery"] = parse_sources(config.recovery_data)
    return read


def measure(job: Job) -> None:
    """Measure the result: compared with the base where that is known, else alone."""
    compares = job.student is None or job.is_base
    measured = job.evaluation.compare_checkpoint if compares else job.evaluation.measure_checkpoint
    report = measured(job.folder, name=job.name)
    old = job.old
    base = report.base
    if not compares and old is not None and old.base is not None:
        elsewhere = old.environment != report.environment
        base = old.base.measured_in(old.environment) if elsewhere else old.base
    job.report = replace(
        report,
        base=base,
        origin=_origin(job),
        compensation=job.compensation if old is None else old.compensation,
        recovery=job.recovery,
        sparsity=job.sparsity,
        stages=job.stages or (None if old is None else old.stages),
    )


def _origin(job: Job) -> Origin:
    source = job.session.source
    recovers_base = job.student is not None and job.plan is None and job.is_base
    if job.student is not None and not recovers_base:
        origin = (job.old.origin if job.old else None) or Origin()
        lines = [line for line in (origin.command, job.command) if line]
        return replace(origin, command="\n".join(lines))
    return Origin(
        base_model=job.config.base_model or (source.name if source.is_hub_id else None),
        license=source.license,
        license_details=dict(source.license_details),
        languages=tuple(source.languages),
        notes=tuple(source.notes),
        command=job.command,
    )


def write_run(job: Job) -> None:
    """Write plan and report."""
    Run(job.plan, job.finished).write(job.folder)


def write_records(job: Job) -> None:
    """Write plan, report and card."""
    write_run(job)
    if job.plan is not None:
        build_card(job.folder)
