"""The stages that plan, cut and repair."""

from __future__ import annotations

from ..architectures.description import LAYERS
from ..checkpoint.writing import copy_checkpoint
from ..core.json_files import write_json
from ..core.limits import check_lengths
from ..core.processes import process_count
from ..importance.stage import reads_text, score, scored_dimensions, select_layers, used_criteria
from ..importance.weights import key_value_similarity
from ..planning.stage import check_shape, layers_to_remove, plan
from ..report.files import CONFIG_FILE, SCORES_FILE
from ..report.plan import CalibrationRecord, Choice
from ..report.scores import write_scores
from ..surgery.stage import check_compensation, cut, repair
from .job import Job


def check_cut(job: Job) -> None:
    """Check the shape, the calibration text, the model's limits and the weight files."""
    job.shape = check_shape(job.session.source, job.config)
    check_compensation(job.config)
    for source in job.calibration.sources:
        source.check()
    job.session.source.check()
    if _reads_calibration(job):
        model, length = job.session.source, job.config.calibration_length
        check_lengths(model.config, model.display_name, calibration_length=length)


def _reads_calibration(job: Job) -> bool:
    config, source = job.config, job.session.source
    keys = scored_dimensions(source.binding.shape, job.shape, merge=config.merge_key_value_heads)
    return config.compensation != "none" or reads_text(config, keys)


def score_and_plan(job: Job) -> None:
    """Score what changes, and choose what is retained."""
    session, config, shape = job.session, job.config, job.shape
    source = session.source
    # All processes take part in the draw, and the repair runs in one of them.
    shared = process_count() > 1 and config.compensation != "none"
    samples_itself = any(text.is_self for text in job.calibration.sources)
    if shared or (_reads_calibration(job) and not samples_itself):
        len(job.calibration.windows)  # a text that is too short, or that the model cannot read, ends the run here
    keys = scored_dimensions(source.binding.shape, shape, merge=config.merge_key_value_heads)
    job.scores = score(session, config, job.calibration, keys)
    if config.merge_key_value_heads:
        job.scores["key_value_similarity"] = key_value_similarity(source.tensors, source.binding)
    removable = layers_to_remove(source, config, shape)
    layers = select_layers(session, config, job.calibration, job.scores, shape[LAYERS], removable)
    job.plan = plan(source, config, shape, job.scores, _choice(job), layers=layers, name=session.base_name)
    job.on_plan(job.plan)


def _choice(job: Job) -> Choice:
    config, sources = job.config, job.calibration.sources
    used = used_criteria(config, job.scores)
    reads = config.compensation != "none" or reads_text(config, job.scores)
    record = CalibrationRecord(
        sources=tuple(text.label for text in sources),
        fingerprints=tuple(text.fingerprint() for text in sources),
        samples=config.calibration_samples,
        length=config.calibration_length,
        importance_samples=min(config.importance_samples, config.calibration_samples),
        batch_size=config.batch_size,
        begins_with=job.calibration.begins_with if reads else None,
    )
    return Choice(
        importance=used["unit"].name if "unit" in used else None,
        layer_importance=used["layer"].name if "layer" in used else None,
        layer_selection=config.layer_selection if "layer" in used else None,
        seed=config.seed,
        calibration=record if reads else None,
    )


def write_cut(job: Job) -> None:
    """Write the cut checkpoint, with the scores and the config."""
    cut(job.session, job.cut_plan, job.folder)
    write_scores(job.scores, job.folder / SCORES_FILE)
    write_json(job.folder / CONFIG_FILE, job.config.portable().to_dict())


def repair_cut(job: Job) -> None:
    """Repair the cut checkpoint in closed form."""
    job.compensation = repair(job.session, job.config, job.calibration, job.cut_plan, job.folder)


def copy_student(job: Job) -> None:
    """Copy the checkpoint that is recovered, with everything in its folder that belongs to it."""
    assert job.student is not None, "`recover` starts from a checkpoint"
    copy_checkpoint(job.student, job.folder)
    if job.plan is None:
        write_json(job.folder / CONFIG_FILE, job.config.portable().to_dict())
