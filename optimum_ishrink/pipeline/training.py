"""The stages that recover."""

from __future__ import annotations

from pathlib import Path

import torch

from ..architectures.description import LAYERS
from ..checkpoint.source import Source
from ..checkpoint.tensors import DTYPES, read_tensor
from ..configuration import IShrinkConfig
from ..core.limits import check_lengths
from ..core.processes import is_main_process, process_count
from ..edge.recovery_values import check_recovery_for, exported_values
from ..errors import RequestError
from ..recovery.exported_weights import ExportedValues
from ..recovery.kept_zeros import check_zeros
from ..recovery.preparation import Models, Preparation, prepare
from ..recovery.run_training import train_prepared
from ..recovery.sharding import check_sharding
from ..recovery.stage import (
    adapter_base,
    apply,
    check_compile,
    check_device,
    check_early_exits,
    check_losses,
    check_start,
    check_targets,
    check_teacher,
    check_teachers,
    check_text,
)
from ..recovery.teachers import describe_teachers
from ..recovery.training import micro_batch
from ..recovery.work_folder import discard_unused, work_folder
from ..sparsity.matrices import parameters_of
from ..surgery.folds import check_windows
from ..surgery.stage import refit
from ..text.sources import parse_sources
from .job import Job
from .rounded_start import rounded_weights


def check_recovery_of_cut(job: Job) -> None:
    """Check the recovery of a checkpoint that this run cuts.

    Raises:
        RequestError: It is not possible, or there is none and a type to train for was named.
    """
    if not job.config.recovers:
        if job.config.recovery_for is not None:
            raise RequestError(
                f"recovery_for={job.config.recovery_for!r} says what a recovery trains for, and recovery='none' "
                "trains nothing; name a loss, such as recovery='kl', or leave it out"
            )
        if job.config.torch_compile:
            raise RequestError(
                "torch_compile compiles what a recovery runs, and recovery='none' trains nothing; name a loss, such "
                "as recovery='kl', or leave it out"
            )
        check_early_exits(job.config, job.session.source, job.shape[LAYERS])
        return
    if job.cuts_rows:
        check_losses(job.config)
    check_training(job)


def check_training(job: Job) -> None:
    """Check what a training needs, whichever checkpoint it starts from."""
    config, student = job.config, job.student or job.session.source
    micro_batch(config.recovery_batch_size, config.batch_windows, process_count())  # a step is shared evenly
    student.check()
    check_device(job.session)
    for text in parse_sources(config.recovery_data):
        text.check()
    adapter_base(config, job.student)
    if config.torch_compile:
        check_compile(config, job.session)
    if config.recovery_for is not None:
        shape = None if job.student is not None else job.shape
        check_recovery_for(config.recovery_for, student, shape, _types_file(config))
    check_start(config, is_base=job.is_base and (job.student is None or job.plan is not None))
    sparse = config.sparsifies or (job.plan is not None and job.plan.sparsity is not None)
    if sparse:
        check_zeros(config)
    check_sharding(config, sparse=sparse)
    check_targets(config, student)
    check_early_exits(config, student, (job.shape or student.binding.shape)[LAYERS])
    if config.compensates:
        windows, off = "recovery_compensation_samples", "recovery_compensation='none'"
        check_windows(config.recovery_compensation_samples, samples=windows, off=off)
    pair = None
    if job.teacher is not None and job.teacher is not student:
        pair = check_teacher(config, job.teacher, student)
        check_teachers(job.teacher, job.more_teachers)
    for source in (student, job.teacher, *job.more_teachers):
        if source is not None:
            check_lengths(source.config, source.display_name, recovery_length=config.recovery_length)
    read = check_text(config, job.session, student, pair if config.needs_teacher_model else None)
    # A vocabulary that is cut reads the text in other tokens, and they are not known yet.
    job.text = None if job.cuts_rows else read


def _types_file(config: IShrinkConfig) -> Path | None:
    """Return the file whose types are trained for."""
    return None if config.recovery_types is None else Path(config.recovery_types).expanduser()


def train_student(job: Job) -> None:
    """Train the pruned checkpoint; its folder is only read."""
    if not job.config.recovers:
        return
    student = job.student or Source(job.folder.name, job.folder)
    models = Models(student, job.teacher, job.plan, job.is_base, job.more_teachers)
    work = work_folder(job.output)
    try:
        prepared = prepare(job.session, job.config, models, work, job.text, job.part)
        exported = None
        if job.config.recovery_for is not None:
            exported = exported_values(student, job.config.recovery_for, _types_file(job.config))
        solved = _solve(job, prepared, exported) if job.config.compensates or job.config.starts_calibrated else None
        start = None
        if job.config.uses_lora and job.config.recovery_lora_start != "zero" and not prepared.resumes:
            start = _adapter_start(job, prepared)
        sparse: tuple[str, ...] = ()
        if job.plan is not None and job.plan.sparsity is not None:
            sparse = parameters_of(student.binding, job.plan.sparsity.matrices)
        job.trained = train_prepared(prepared, solved=solved, start=start, exported=exported, sparse=sparse)
    except RequestError:
        if is_main_process():
            discard_unused(work)  # a refused request leaves nothing
        raise


def _solve(job: Job, prepared: Preparation, exported: ExportedValues | None) -> dict[str, torch.Tensor]:
    """Return the weights of the closed forms on the training text; one process computes and stores them for all."""
    with prepared.processes.main_process_first():
        found = prepared.read_solution()
        if found is None:
            found = {}
            if job.config.compensates:
                weights = _refit(job, prepared, job.config.recovery_compensation_samples)
                tensors = prepared.models.student.tensors
                found = {name: weight.to(DTYPES[tensors[name].dtype]) for name, weight in weights.items()}
            if job.config.starts_calibrated and exported is not None:
                windows = prepared.text.input_ids[: prepared.text.trained]  # held-out windows are never read
                student = prepared.models.student
                found |= rounded_weights(student, exported, prepared.session, windows, found, trained=True)
            prepared.store_solution(found)
    return found


def _adapter_start(job: Job, prepared: Preparation) -> dict[str, torch.Tensor]:
    """Return what the closed form of the adapter's rank adds to the weights."""
    weights = _refit(job, prepared, job.config.calibration_samples, rank=job.config.recovery_lora_rank)
    tensors = prepared.models.student.tensors
    return {name: weight - read_tensor(tensors[name]).double() for name, weight in weights.items()}


def _refit(job: Job, prepared: Preparation, samples: int, *, rank: int | None = None) -> dict[str, torch.Tensor]:
    text, folder = prepared.text, prepared.models.student.folder
    count = min(text.trained, samples)  # held-out windows are never read
    return refit(job.cutting, job.cut_plan, folder, text.input_ids[:count], text.kinds[:count], rank=rank)


def measure_before(job: Job) -> None:
    """Measure the divergence before recovery, where there is a base to diverge from."""
    measures = job.config.evaluate and job.config.recovers
    if measures and (job.is_base or job.student is None):
        job.before = job.evaluation.measure_divergence(job.folder, name=job.name)


def write_recovered(job: Job) -> None:
    """Write what was trained into the output, if it helped."""
    if job.trained is None:
        return
    job.recovery = apply(
        job.trained,
        job.config,
        Source(job.folder.name, job.folder),
        adapter_base=adapter_base(job.config, job.student),
        before=job.before,
        teacher=_teacher_name(job),
    )
    job.trained = None  # frees its model before the result is measured


def _teacher_name(job: Job) -> str | None:
    """Return what reports call the teacher; None where it is the unpruned model alone, or where there is none."""
    if job.teacher is None or (job.is_base and not job.more_teachers):
        return None
    if not job.more_teachers:
        return job.teacher.display_name
    names = tuple(source.display_name for source in (job.teacher, *job.more_teachers))
    return describe_teachers(job.config.teachers, names)
