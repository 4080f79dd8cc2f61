"""The order of the stages, and the runner: the only file that knows it.

    source -> importance -> plan -> checkpoint -> recovery -> report -> card

A run is a list of stages and one runner. All checks come first, then the stages that every process shares, then those
that write into a hidden folder, which is renamed to the output folder at the end. Of these the main process runs most
alone; compensation and recovery are shared as well.
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

from ..checkpoint.session import Session
from ..configuration import IShrinkConfig
from ..core.locks import claimed_folder
from ..core.output import check_not_inside, check_output, staged_folder
from ..core.processes import from_main_process, is_main_process, wait_for_all
from ..errors import RequestError
from ..recovery.work_folder import work_folder
from ..report.plan import Plan
from ..report.report import Report
from ..report.run import Run
from ..text.sources import parse_sources
from .cutting import calibrates, check_cut, copy_student, repair_cut, runs_model, score_and_plan, write_cut
from .job import Job, Pipeline, Stage, shrink_job
from .measuring import check_measuring, measure, write_records, write_run
from .offloading import offloading
from .opening import open_written
from .schedule_folder import schedule_folder
from .sparsifying import count_written, sparsify_cut
from .training import check_recovery_of_cut, check_training, measure_before, train_student, write_recovered

PLAN = Stage(score_and_plan, check_cut)


TRAIN = Stage(train_student, check_training)


SHRINK = Pipeline(
    shared=(PLAN,),
    writing=(
        Stage(write_cut),
        Stage(repair_cut, together=True),
        Stage(sparsify_cut),
        Stage(measure_before),
        Stage(train_student, check_recovery_of_cut, together=True),
        Stage(write_recovered),
        Stage(count_written),
        Stage(open_written),
        Stage(measure, check_measuring),
        Stage(write_records),
    ),
)
"""Cut a model, repair it, recover it if requested, measure it."""


CUT = Pipeline(
    shared=(PLAN,),
    writing=(
        Stage(write_cut),
        Stage(repair_cut, together=True),
        Stage(sparsify_cut),
        Stage(count_written),
        Stage(open_written),
        Stage(measure, check_measuring),
        Stage(write_run),
    ),
)
"""Cut a model and repair it, without a card: for one of many that are made to be compared."""


RECOVER = Pipeline(
    shared=(TRAIN,),
    writing=(
        Stage(copy_student),
        Stage(measure_before),
        Stage(write_recovered),
        Stage(count_written),
        Stage(open_written),
        Stage(measure, check_measuring),
        Stage(write_records),
    ),
)
"""Train an existing checkpoint, and measure it."""


def run(pipeline: Pipeline, job: Job, *, overwrite: bool = False) -> Report:
    """Check all stages, then run them; the output folder appears whole or not at all.

    Args:
        pipeline: The stages.
        job: The request.
        overwrite: Replace what is in the output folder.

    Returns:
        The report.

    Raises:
        RequestError: The request cannot be met; nothing was written.
        VerificationError: The written checkpoint is not what was planned; nothing was left behind.
        TrainingError: The training stopped before its end; the same command resumes it.
    """
    if (job.config.schedule is not None) != pipeline.schedules:
        raise RequestError(
            f"schedule={job.config.schedule!r} is for shrink, which cuts and recovers in turn; leave it out here"
        )
    check_output(job.output, overwrite)
    check_not_inside(job.output, _inputs(job))
    for stage in (*pipeline.shared, *pipeline.writing):
        stage.check(job)
    # Two trainings in one working folder would remove each other's checkpoints.
    claims = (job.config.recovers or pipeline.schedules) and is_main_process()
    training = claimed_folder(_working(job), "trains") if claims else nullcontext()
    with training, offloading(job, runs_model=runs_model(job), calibrates=calibrates(job)):
        _run_stages(pipeline, job, overwrite)
    return job.finished if is_main_process() else Run.read(job.output).report


def _run_stages(pipeline: Pipeline, job: Job, overwrite: bool) -> None:
    """Run the stages; what is written is renamed to the output folder before the other processes go on."""
    for stage in pipeline.shared:
        stage.run(job)
    main = is_main_process()
    with staged_folder(job.output, overwrite=overwrite) if main else nullcontext() as folder:
        job.folder = from_main_process(folder)
        for stage in pipeline.writing:
            if stage.together:
                wait_for_all()  # until the main process has written what the stage reads
            if main or stage.together:
                stage.run(job)
    if main and (job.config.recovers or job.config.schedule is not None):
        shutil.rmtree(_working(job), ignore_errors=True)
    wait_for_all()


def _working(job: Job) -> Path:
    """Return where a run keeps what the same command resumes from."""
    return work_folder(job.output) if job.config.schedule is None else schedule_folder(job.output)


def _inputs(job: Job) -> list[Path]:
    """Return everything on this machine that the run reads."""
    config = job.config
    sources = [
        source for source in (job.session.source, job.student, job.teacher, *job.more_teachers) if source is not None
    ]
    texts = [*job.calibration.sources, *parse_sources(config.recovery_data), *job.evaluation.inputs.sources]
    folders = [source.folder for source in sources] + [Path(source.name) for source in sources]
    return [*folders, *(text.path for text in texts if text.path)]


def make_plan(
    session: Session, config: IShrinkConfig, *, check_all: bool = False, pipeline: Pipeline = SHRINK
) -> Plan:
    """Return what would be removed, and write nothing.

    Args:
        session: The run.
        config: The request.
        check_all: Check the other stages of a shrink as well: recovery with its teacher and text, evaluation and
            timing.
        pipeline: The stages of the shrink.

    Raises:
        RequestError: The request cannot be met.
    """
    job = shrink_job(session, config, Path()) if check_all else Job(session, config, Path())
    stages = (*pipeline.shared, *pipeline.writing) if check_all else SHRINK.shared
    for stage in stages:
        stage.check(job)
    score_and_plan(job)
    return job.cut_plan
