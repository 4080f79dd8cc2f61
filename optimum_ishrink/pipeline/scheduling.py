"""Cutting and recovering in turn: each stage is a run of its own in the working folder, and the last is the result.

Whatever a stage does, the stages of `shrink` and `recover` do it. What this adds is where each stage starts and ends,
the plan of all cuts together, and which part of the text each recovery trains on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..architectures.description import DIMENSIONS, LAYERS, ROWS
from ..checkpoint.fingerprint import checkpoint_digest
from ..checkpoint.session import Session
from ..checkpoint.source import Source, open_source
from ..checkpoint.writing import copy_checkpoint
from ..configuration import IShrinkConfig
from ..core.device import dtype_name
from ..core.json_files import write_json
from ..core.processes import process_count
from ..core.progress import note
from ..errors import RequestError, ShapeError
from ..evaluation.options import EvaluationOptions
from ..options.option import options_of, own_options
from ..options.run import RunOptions
from ..planning.composition import composed
from ..planning.schedule import ScheduledStage, describe_stages, scheduled_stages
from ..planning.schedule_names import parse_schedule
from ..planning.stage import check_shape
from ..recovery.training_text import TextPart, check_parts
from ..report.files import CONFIG_FILE, SCORES_FILE
from ..report.run import Run
from ..report.scores import read_scores, write_scores
from ..report.stages import StageRecord
from ..text.calibration import Calibration
from ..text.sources import parse_sources
from ..vocabulary.options import VocabularyOptions
from .cutting import check_cut, copy_student
from .job import Job, Pipeline, Stage, open_teachers, recover_job, shrink_job
from .measuring import check_measuring, measure, write_records, write_run
from .opening import open_written
from .runner import CUT, SHRINK, TRAIN, run
from .schedule_folder import clear_schedule, finished_stages, open_schedule, schedule_folder, stage_folder
from .sparsifying import count_written
from .training import check_recovery_of_cut, write_recovered

RECOVER_STAGE = Pipeline(
    shared=(TRAIN,),
    writing=(
        Stage(copy_student),
        Stage(write_recovered),
        Stage(count_written),
        Stage(open_written),
        Stage(measure),
        Stage(write_run),
    ),
)
"""Train a checkpoint that will be cut or measured later."""


def check_scheduled(job: Job) -> None:
    """Check the target as without a schedule, then each stage on the way to it.

    Raises:
        RequestError: A stage makes no sense, or its shape is not one that the model can have.
    """
    if process_count() > 1:
        raise RequestError("a schedule runs in one process; leave out schedule, or start one")
    check_cut(job)
    check_recovery_of_cut(job)
    stages = _stages(job)
    recoveries = sum(stage.recovers for stage in stages)
    if recoveries:
        check_parts(job.config, recoveries)
    source = job.session.source
    note("schedule: " + "; ".join(describe_stages(stages, source.binding.shape)))
    for number, stage in enumerate(stages, start=1):
        if stage.recovers:
            continue
        try:
            check_shape(source, _shape_alone(job, stage), may_stay=True)
        except ShapeError as error:
            raise RequestError(f"stage {number} of the schedule ({stage.name}): {error}") from None


def _stages(job: Job) -> tuple[ScheduledStage, ...]:
    assert job.config.schedule is not None, "only a request with a schedule comes here"
    names = parse_schedule(job.config.schedule)
    return scheduled_stages(names, job.session.source.binding, job.shape, job.config)


def _shape_alone(job: Job, stage: ScheduledStage) -> IShrinkConfig:
    """Return the request of a stage's shape of the base, for its check; rows were checked with the target."""
    before = job.session.source.binding.shape
    sizes: dict[str, Any] = {key: size for key, size in stage.shape.items() if key != ROWS and size != before[key]}
    return _without_vocabulary(_plain(job).replace(**sizes))


def run_schedule(job: Job) -> None:
    """Run the stages that are not finished yet, one after the other."""
    folder, stages = schedule_folder(job.output), _stages(job)
    open_schedule(folder, _request(job))
    try:
        for number, stage in enumerate(stages, start=1):
            place = stage_folder(folder, number, stage)
            if not place.is_dir():
                note(f"schedule: stage {number} of {len(stages)}, {stage.name}")
                before = stage_folder(folder, number - 1, stages[number - 2]) if number > 1 else None
                (_recover if stage.recovers else _cut)(job, stages, number, before, place)
    except RequestError:
        if not finished_stages(folder):
            clear_schedule(folder)  # a refused request leaves nothing
        raise


def _plain(job: Job) -> IShrinkConfig:
    """Return the request of a stage that neither recovers nor measures, of no shape yet."""
    source = job.session.source
    first, last = job.config.protection(source.binding.shape[LAYERS], source.binding.first_layers)
    return job.config.cut_alone(
        schedule=None,
        **dict.fromkeys(DIMENSIONS),
        recovery_for=None,
        recovery_types=None,
        recovery_rounding=None,
        recovery_early_exit=None,
        keep_first_layers=first,
        keep_last_layers=last,
    )


def _without_vocabulary(config: IShrinkConfig) -> IShrinkConfig:
    return config.replace(**{name: each.default for name, each in own_options(VocabularyOptions).items()})


def _cut(job: Job, stages: tuple[ScheduledStage, ...], number: int, before: Path | None, place: Path) -> None:
    """Cut what the stage before it left to the shape of this one."""
    base, stage = job.session.source, stages[number - 1]
    source = base if before is None else replace(open_source(before), name=base.name, is_hub_id=base.is_hub_id)
    shape = dict(source.binding.shape)
    config = _plain(job)
    if stage.shape.get(ROWS) == shape.get(ROWS):
        config = _without_vocabulary(config)
    # Dimensions that are given without a target are those that change; what a request gave is in the shape.
    sizes: dict[str, Any] = {key: size for key, size in stage.shape.items() if size != shape.get(key)}
    config = config.replace(**sizes)
    cuts = [at for at, each in enumerate(stages, start=1) if not each.recovers]
    if number != cuts[0]:
        config = config.replace(tie_embeddings=False)  # it is tied by now
    if number != cuts[-1]:  # what comes after would undo it
        config = config.replace(sparsity=None, compensation_for=None)
    session = Session(source, config, may_offload=job.session.may_offload)
    inner = shrink_job(session, config, place)
    if before is None:
        session.share(job.session)
        inner.calibration, inner.vocabulary = job.calibration, job.vocabulary
    else:
        # What is to be sampled from the model itself is sampled from the unpruned one.
        inner.calibration = Calibration(config, session, whole=job.calibration)
    earlier = None if before is None else Run.read(before).plan

    def compose(made: Job) -> None:
        if earlier is not None:
            edited = Source(made.name, made.folder).raw_config
            made.plan = composed(earlier, made.cut_plan, base.binding, base.raw_config, edited)

    run(replace(CUT, writing=(*CUT.writing[:-1], Stage(compose), CUT.writing[-1])), inner)
    if before is None:
        job.session.share(session)


def _recover(job: Job, stages: tuple[ScheduledStage, ...], number: int, before: Path | None, place: Path) -> None:
    """Train what the stage before it left on its part of the text; the teacher is that of the whole run."""
    assert before is not None, "a schedule begins with a cut"
    config = job.config.replace(schedule=None, evaluate=False, benchmark=False)
    if number != len(stages):  # only the result is run in the type that it is trained for
        config = config.replace(recovery_for=None, recovery_types=None, recovery_rounding=None)
    teacher, *more = open_teachers(config) or (job.session.source,)
    inner = recover_job(open_source(before), teacher, config, place, more_teachers=more)
    inner.is_base = inner.is_base and not config.teachers
    same_model = inner.session.source.folder == job.session.source.folder
    if same_model:
        inner.session.share(job.session)
    places = [at for at, each in enumerate(stages, start=1) if each.recovers]
    inner.part = TextPart(places.index(number), len(places), place.parent)
    run(RECOVER_STAGE, inner)
    if same_model:
        job.session.share(inner.session)


def take_result(job: Job) -> None:
    """Copy what the last stage left, with the plan of all cuts and the records of all stages."""
    folder, stages = schedule_folder(job.output), _stages(job)
    places = [stage_folder(folder, number, stage) for number, stage in enumerate(stages, start=1)]
    runs = [Run.read(place) for place in places]
    job.made_of, job.plan, job.old = places[-1], runs[-1].plan, runs[-1].report
    copy_checkpoint(open_source(places[-1]), job.folder)
    write_json(job.folder / CONFIG_FILE, job.config.portable().to_dict())
    # Those of the first cut are scores of the unpruned model; later ones are of models that nobody has.
    write_scores(read_scores(places[0] / SCORES_FILE), job.folder / SCORES_FILE)
    job.stages = tuple(
        StageRecord(
            stage.name, dict(stage.shape), each.report.shrunk.params, each.report.recovery if stage.recovers else None
        )
        for stage, each in zip(stages, runs, strict=True)
    )
    if stages[-1].recovers:
        job.recovery = runs[-1].report.recovery
        if job.config.evaluate and job.recovery is not None:
            before = job.evaluation.measure_divergence(places[-2], name=job.name)
            job.recovery = replace(job.recovery, before=tuple(before))
    job.on_plan(job.cut_plan)


SCHEDULED = Pipeline(
    shared=(Stage(run_schedule, check_scheduled),),
    writing=(
        Stage(take_result),
        Stage(count_written),
        Stage(open_written),
        Stage(measure, check_measuring),
        Stage(write_records),
    ),
    schedules=True,
)
"""Cut and recover in turn, and measure the result against the unpruned model."""


def pipeline_of(config: IShrinkConfig) -> Pipeline:
    """Return the stages of a shrink.

    Args:
        config: The request.
    """
    return SHRINK if config.schedule is None else SCHEDULED


def _request(job: Job) -> dict[str, Any]:
    """Return everything that the stages depend on, as plain values."""
    config = job.config
    measured = options_of(EvaluationOptions).keys() - options_of(RunOptions).keys()
    elsewhere = {*measured, "offload", "offload_folder", "recovery_cache", "recovery_teacher", "base_model"}
    texts = [*job.calibration.sources, *(parse_sources(config.recovery_data) if config.recovers else ())]
    teachers = (job.teacher, *job.more_teachers) if config.recovers else ()
    return {
        **{name: value for name, value in config.to_dict().items() if name not in elsewhere},
        "model": checkpoint_digest(job.session.source.folder),
        "teachers": [checkpoint_digest(teacher.folder) for teacher in teachers if teacher is not None],
        "weights of teachers": [teacher.weight for teacher in config.teachers],
        "texts": [[text.label, text.fingerprint()] for text in texts],
        "dtype": dtype_name(job.session.dtype),
        "device": job.session.device.type,
    }
