"""The request of a run, what its stages have produced so far, and what a stage is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoint.session import Session
from ..checkpoint.source import Source, open_source
from ..configuration import IShrinkConfig
from ..errors import RequestError
from ..evaluation.stage import Evaluation
from ..recovery.training import Trained
from ..report.compensation import CompensationRecord
from ..report.measurement import Measurement
from ..report.plan import Plan
from ..report.recovery import RecoveryRecord
from ..report.report import Report
from ..report.run import read_run
from ..text.calibration import Calibration


class Job:
    """One run: the request, and what its stages have produced so far.

    Args:
        session: The model, device and dtype. Its source is the unpruned model where that is known.
        config: The request.
        output: The output folder.
        command: The command line that makes the same model; the card shows it.
        on_plan: Called with the plan before anything is cut.
    """

    def __init__(
        self,
        session: Session,
        config: IShrinkConfig,
        output: Path,
        *,
        command: str = "",
        on_plan: Callable[[Plan], None] = lambda plan: None,
    ) -> None:
        self.session = session
        self.config = config
        self.output = output
        self.command = command
        self.on_plan = on_plan
        self.calibration = Calibration(config, session)
        self.evaluation = Evaluation(session, config)
        self.folder = output
        """Where the stages write: the hidden folder, once the runner has made it."""
        self.student: Source | None = None
        """The pruned checkpoint that `recover` starts from; None when this run cuts one."""
        self.teacher: Source | None = session.source
        self.is_base = True
        """Whether the teacher is the unpruned model that the plan started from."""
        self.old: Report | None = None
        """What was measured before this run, of a checkpoint that is recovered."""
        self.shape: dict[str, int] = {}
        self.scores: dict[str, torch.Tensor] = {}
        self.plan: Plan | None = None
        self.compensation: CompensationRecord | None = None
        self.before: tuple[Measurement, ...] = ()
        self.trained: Trained | None = None
        self.recovery: RecoveryRecord | None = None
        self.report: Report | None = None

    @property
    def name(self) -> str:
        """What reports call the result."""
        return self.output.resolve().name

    @property
    def cut_plan(self) -> Plan:
        """The plan, once it is there."""
        assert self.plan is not None, "the plan stage comes first"
        return self.plan

    @property
    def finished(self) -> Report:
        """The report, once it is there."""
        assert self.report is not None, "the stage that measures comes first"
        return self.report


def no_check(job: Job) -> None:
    """Check nothing: what the stage does cannot be refused beforehand."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Args:
        run: Does the work and leaves its record in the job.
        check: Checks all that can be known before long work, in the job as it was made.
    """

    run: Callable[[Job], None]
    check: Callable[[Job], None] = no_check


@dataclass(frozen=True)
class Pipeline:
    """The stages of a run, in order.

    Args:
        shared: Stages that every process takes part in, before anything is written.
        writing: Stages of the main process, which write into the output folder.
    """

    shared: tuple[Stage, ...]
    writing: tuple[Stage, ...]


def shrink_job(
    session: Session,
    config: IShrinkConfig,
    output: Path,
    *extra: str,
    command: str | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> Job:
    """Return the job of a shrink.

    Args:
        session: The run.
        config: The request.
        output: The output folder.
        extra: More arguments of the command line that the card shows.
        command: That command line; by default the one of the same request, in which files have no folders.
        on_plan: Called with the plan before anything is cut.
    """
    source = session.source
    words = [*(["--gguf-file", source.gguf_file] if source.gguf_file else []), *extra]
    if source.revision:
        words += ["--revision", source.revision]
    command = command or config.portable().command(source.display_name, output.resolve().name, *words)
    job = Job(session, config, output, command=command, on_plan=on_plan)
    if config.recovers and config.recovery_teacher:
        job.teacher, job.is_base = open_source(config.recovery_teacher), False
    return job


def recover_job(student: Source, teacher: Source | None, config: IShrinkConfig, output: Path) -> Job:
    """Return the job of a recovery. The base that the plan names is the teacher where none is given.

    Args:
        student: The pruned checkpoint: an output folder of shrink, or any other.
        teacher: The model to learn from, or None.
        config: The request.
        output: The output folder.

    Raises:
        RequestError: A teacher is needed, and none is named.
    """
    found, old = read_run(student.folder)
    base = old.origin.base_model if old is not None and old.origin is not None else None
    if teacher is None and found is not None and base:
        teacher = open_source(base, revision=found.revision)
    if teacher is None and config.needs_teacher_model:
        raise RequestError(
            f"recovery={config.recovery!r} on {','.join(config.recovery_data)} needs a teacher, and the folder names "
            "no base on the Hub; pass --teacher with the unpruned model"
        )
    is_base = found is not None and teacher is not None and is_base_of(teacher, found)
    session = Session(teacher if is_base and teacher is not None else student, config)
    command = config.portable().command(student.display_name, output.resolve().name, verb="recover")
    job = Job(session, config, output, command=command)
    job.student, job.teacher, job.is_base, job.plan, job.old = student, teacher, is_base, found, old
    return job


def is_base_of(source: Source, plan: Plan) -> bool:
    """Return whether a model has the shape that a plan started from.

    Args:
        source: The model.
        plan: The plan.
    """
    same = dict(source.binding.shape) == dict(plan.shape)
    return same and source.raw_config.get("model_type") == plan.model_type
