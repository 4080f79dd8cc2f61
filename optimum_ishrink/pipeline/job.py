"""The request of a run, what its stages have produced so far, and what a stage is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ..architectures.description import ROWS
from ..checkpoint.session import Session
from ..checkpoint.source import Source, open_source
from ..configuration import IShrinkConfig
from ..core.progress import note
from ..errors import RequestError
from ..evaluation.stage import Evaluation
from ..recovery.options import RecoveryOptions
from ..recovery.training import Trained
from ..recovery.training_text import RecoveryText, TextPart
from ..report.compensation import CompensationRecord
from ..report.measurement import Measurement
from ..report.plan import Plan
from ..report.recovery import RecoveryRecord
from ..report.report import Report
from ..report.run import read_run
from ..report.sparsity import SparsityPlan, SparsityRecord
from ..report.stages import StageRecord
from ..report.tied_head import HeadRecord
from ..report.vocabulary import VocabularyRecord
from ..text.calibration import Calibration
from ..vocabulary.stage import Vocabulary
from .trimming import Trim


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
        self.more_teachers: tuple[Source, ...] = ()
        """Further models to learn from, whose predictions are averaged with the teacher's."""
        self.is_base = True
        """Whether the teacher is the unpruned model that the plan started from."""
        self.old: Report | None = None
        """What was measured before this run, of a checkpoint that is recovered."""
        self.vocabulary: Vocabulary | None = None
        """What is known of the vocabulary; None where it does not change."""
        self.trim: Trim | None = None
        """The model with the vocabulary and the head of the result, before its layers are cut; None where they are the
        base's."""
        self.kept_rows: VocabularyRecord | None = None
        self.head: HeadRecord | None = None
        """How far the head is from the embedding, where that can stand in for it."""
        self.within: Plan | None = None
        """The plan of a larger model of the same base; nothing is retained that it has lost. None for any."""
        self.text: RecoveryText | None = None
        """The text to train on, once it has been read; None where some of it is sampled, or its tokens are not known
        before the vocabulary is cut."""
        self.shape: dict[str, int] = {}
        self.scores: dict[str, torch.Tensor] = {}
        self.plan: Plan | None = None
        self.compensation: CompensationRecord | None = None
        self.sparsity_plan: SparsityPlan | None = None
        """Which matrices get zeros in this run; None where none were requested."""
        self.made_up: dict[str, float] = {}
        """By kind of matrix, the share of its outputs' energy that the zeros changed."""
        self.sparsity: SparsityRecord | None = None
        self.part: TextPart | None = None
        """The part of the recovery text to train on; None for all of it."""
        self.made_of: Path | None = None
        """The folder of the last stage of a schedule, which the result is a copy of; None without a schedule."""
        self.stages: tuple[StageRecord, ...] = ()
        """The stages of a schedule."""
        self.before: tuple[Measurement, ...] = ()
        self.trained: Trained | None = None
        self.recovery: RecoveryRecord | None = None
        self.report: Report | None = None

    @cached_property
    def cutting(self) -> Session:
        """The run over the model whose layers are cut: the base, with the vocabulary and the head of the result."""
        if self.trim is None and self.plan is not None:
            kept, self.head = self.plan.vocabulary, self.plan.tied_head
            if kept is not None or self.head_to_tie is not None:
                self.trim = Trim(self.session.source, None if kept is None else kept.rows, self.head_to_tie)
        if self.trim is None:
            return self.session
        session = Session(self.trim.source, self.config, may_offload=self.session.may_offload)
        session.spool_folder, session.needs_whole = self.session.spool_folder, self.session.needs_whole
        session.offloads = self.session.offloads  # decided once for a run, whatever is free by now
        return session

    @property
    def cuts_rows(self) -> bool:
        """Whether tokens are removed."""
        return self.vocabulary is not None and self.shape[ROWS] < self.session.source.binding.shape[ROWS]

    @property
    def cuts_units(self) -> bool:
        """Whether anything besides the vocabulary is cut."""
        return {**self.session.source.binding.shape, ROWS: 0} != {**self.shape, ROWS: 0}

    @property
    def head_to_tie(self) -> HeadRecord | None:
        """The head that is tied to the embedding; None where it stays as it is."""
        return self.head if self.head is not None and self.head.tied else None

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
        together: Whether every process takes part, where it is a stage that writes.
    """

    run: Callable[[Job], None]
    check: Callable[[Job], None] = no_check
    together: bool = False


@dataclass(frozen=True)
class Pipeline:
    """The stages of a run, in order.

    Args:
        shared: Stages that every process takes part in, before anything is written.
        writing: Stages that write into the output folder: of the main process, but for those that all run together.
        schedules: Whether it cuts and recovers in turn.
    """

    shared: tuple[Stage, ...]
    writing: tuple[Stage, ...]
    schedules: bool = False


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
        job.teacher, *more = open_teachers(config)
        job.more_teachers, job.is_base = tuple(more), False
    return job


def open_teachers(options: RecoveryOptions) -> tuple[Source, ...]:
    """Open the teachers that a recovery names.

    Args:
        options: The recovery's options.

    Raises:
        SourceError: One cannot be opened.
    """
    return tuple(open_source(named.name) for named in options.teachers)


def recover_job(
    student: Source,
    teacher: Source | None,
    config: IShrinkConfig,
    output: Path,
    *,
    more_teachers: Sequence[Source] = (),
) -> Job:
    """Return the job of a recovery. The base that the plan names is the teacher where none is given.

    Args:
        student: The pruned checkpoint: an output folder of shrink, or any other.
        teacher: The model to learn from, or None.
        config: The request.
        output: The output folder.
        more_teachers: Further models to learn from.

    Raises:
        RequestError: A teacher is needed, and none is named.
    """
    found, old = read_run(student.folder)
    base = old.origin.base_model if old is not None and old.origin is not None else None
    if teacher is None and found is not None and base:
        teacher = open_source(base, revision=found.revision)
    unpruned = config.recovery_for is not None and found is None
    if teacher is None and unpruned:
        note(f"no model is named to learn from, and nothing was cut: {student.display_name} itself is the teacher")
        teacher = student
    if teacher is None and config.needs_teacher_model:
        raise RequestError(
            f"recovery={config.recovery!r} on {','.join(config.recovery_data)} needs a teacher, and the folder names "
            "no base on the Hub; pass --teacher with the unpruned model"
        )
    is_base = teacher is not None and (
        is_base_of(teacher, found) if found is not None else unpruned and teacher.folder == student.folder
    )
    session = Session(teacher if is_base and teacher is not None else student, config)
    command = config.portable().command(student.display_name, output.resolve().name, verb="recover")
    job = Job(session, config, output, command=command)
    job.student, job.teacher, job.is_base, job.plan, job.old = student, teacher, is_base, found, old
    job.more_teachers = tuple(more_teachers)
    return job


def is_base_of(source: Source, plan: Plan) -> bool:
    """Return whether a model has the shape that a plan started from.

    Args:
        source: The model.
        plan: The plan.
    """
    shape = source.binding.shape  # plans of older versions do not say how many rows the vocabulary has
    same = all(shape.get(key) == size for key, size in plan.shape.items())
    return same and source.raw_config.get("model_type") == plan.model_type
