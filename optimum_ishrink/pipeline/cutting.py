"""The stages that plan, cut and repair."""

from __future__ import annotations

from dataclasses import replace

from ..architectures.description import LAYERS, ROWS
from ..checkpoint.writing import copy_checkpoint
from ..core.json_files import write_json
from ..core.limits import check_lengths
from ..core.processes import is_main_process, process_count
from ..edge.recovery_values import check_recovery_for
from ..errors import RequestError
from ..importance.expert_outputs import compare_experts
from ..importance.stage import check_calibration, reads_text, score, scored_dimensions, select_layers, used_criteria
from ..importance.weights import key_value_similarity
from ..planning.nesting import confined_scores, removed_layers
from ..planning.runtime_check import RuntimeCheck
from ..planning.stage import check_shape, layers_to_remove, plan
from ..report.compensation import CompensationRecord
from ..report.files import CONFIG_FILE, SCORES_FILE
from ..report.plan import CalibrationRecord, Choice, Plan
from ..report.scores import write_scores
from ..sparsity.stage import plan_sparsity
from ..surgery.stage import check_compensation, cut, repair
from ..text.calibration import Calibration
from .job import Job
from .rounded_start import round_cut
from .row_request import may_change_rows
from .trimming import Trim, choose_rows, find_vocabulary, of_whole
from .tying import before_cut, find_head


def check_cut(job: Job) -> None:
    """Check the shape, the calibration text, the model's limits and the weight files."""
    whole = job.session.source
    check_calibration(job.calibration, whole)
    if job.calibration.has_images and may_change_rows(whole.binding, job.config):
        raise RequestError(
            "rows with images are written by the base's processor, in tokens that a cut vocabulary may not have; "
            "calibrate on text, or leave the vocabulary as it is (for a target: --prune without vocab_size)"
        )
    found = find_vocabulary(whole, job.config, job.vocabulary)
    job.vocabulary, rows = (None, None) if found is None else found
    source, removed = before_cut(whole, job.config)
    job.shape = check_shape(source, job.config, rows, removed, may_stay=job.config.sparsifies)
    job.sparsity_plan = plan_sparsity(job.config, whole, job.shape)
    if job.cuts_units:
        check_compensation(job.config, source.binding, process_count())
    if job.config.compensation_for is not None:
        check_recovery_for(job.config.compensation_for, whole, job.shape)
    whole.check()
    if _reads_calibration(job):
        check_lengths(whole.config, whole.display_name, calibration_length=job.config.calibration_length)
    job.head = find_head(whole, job.config)


def _reads_calibration(job: Job) -> bool:
    keys = _scored(job)
    cut_reads = job.cuts_units and (job.config.compensation != "none" or reads_text(job.config, keys))
    return cut_reads or job.config.sparsity_reads_text or job.config.compensation_for is not None


def runs_model(job: Job) -> bool:
    """Whether a run needs more of the model than its tensors one by one.

    Args:
        job: The run, checked.
    """
    return job.config.evaluate or calibrates(job)


def calibrates(job: Job) -> bool:
    """Whether a run reads calibration text.

    Args:
        job: The run, checked.
    """
    return job.student is None and _reads_calibration(job)


def _scored(job: Job) -> list[str]:
    """Return the dimensions that need scores."""
    before = job.session.source.binding.shape
    return scored_dimensions(before, job.shape, merge=job.config.merge_key_value_heads)


def trim(job: Job) -> None:
    """Choose the tokens that stay and tie the head, so that all that follows is done with these."""
    source, head = job.session.source, job.head_to_tie
    if job.vocabulary is not None and job.cuts_rows:
        job.trim, job.kept_rows = choose_rows(job.vocabulary, job.shape[ROWS], job.calibration, head)
    elif head is not None:
        job.trim = Trim(source, None, head)
    else:
        return
    if job.cuts_units or job.config.sparsity_reads_text or job.config.compensation_for is not None:
        job.session.loaded = None  # one model in memory is enough
        whole = job.calibration if job.kept_rows is not None else None
        job.calibration = Calibration(job.config, job.cutting, whole=whole)


def score_and_plan(job: Job) -> None:
    """Score what changes, and choose what is retained."""
    trim(job)
    config, shape = job.config, job.shape
    if process_count() > 1 and _reads_calibration(job):
        len(job.calibration.windows)  # all processes take part in a draw, and later stages run in one of them
    if job.trim is not None and not job.cuts_units:
        alone = plan(job.trim.configs, config, shape, {}, _choice(job), name=job.session.base_name)
        _set_plan(job, alone)
        return
    session = job.cutting
    source = session.source
    samples_itself = any(text.is_self for text in job.calibration.sources)
    if _reads_calibration(job) and not samples_itself:
        len(job.calibration.windows)  # a text that is too short, or that the model cannot read, ends the run here
    keys = _scored(job)
    job.scores = score(session, config, job.calibration, keys)
    if config.merge_key_value_heads:
        job.scores["key_value_similarity"] = key_value_similarity(source.tensors, source.binding)
    if config.merge_experts:
        windows = job.calibration.windows[: config.importance_samples]
        job.scores |= compare_experts(session.model, source.binding, windows, batch_size=config.batch_windows)
    removable = layers_to_remove(source, config, shape)
    order = RuntimeCheck(source.binding, config.for_runtime).order(shape)
    scores, gone = job.scores, tuple[int, ...]()
    if job.within is not None:
        scores, gone = confined_scores(scores, job.within), removed_layers(job.within)
    layers = select_layers(session, config, job.calibration, job.scores, shape[LAYERS], removable, order, gone)
    made = plan(source, config, shape, scores, _choice(job), layers=layers, name=job.session.base_name)
    _set_plan(job, made)


def _set_plan(job: Job, made: Plan) -> None:
    whole = of_whole(made, job.session.source, job.kept_rows, job.head)
    job.plan = replace(whole, sparsity=job.sparsity_plan)
    job.on_plan(job.plan)


def _choice(job: Job) -> Choice:
    config, sources = job.config, job.calibration.sources
    used = used_criteria(config, job.scores)
    reads = _reads_calibration(job)
    record = CalibrationRecord(
        sources=tuple(text.label for text in sources),
        fingerprints=tuple(text.fingerprint() for text in sources),
        samples=config.calibration_samples,
        length=config.calibration_length,
        importance_samples=min(config.importance_samples, config.calibration_samples),
        batch_size=config.batch_windows,
        begins_with=job.calibration.begins_with if reads else None,
    )
    return Choice(
        importance=used["unit"].name if "unit" in used else None,
        layer_importance=used["layer"].name if "layer" in used else None,
        layer_selection=config.layer_selection if "layer" in used else None,
        seed=config.seed,
        calibration=record if reads else None,
        expert_importance=used["expert"].name if "expert" in used else None,
    )


def write_cut(job: Job) -> None:
    """Write the cut checkpoint, with the scores and the config."""
    if job.trim is not None and not job.cuts_units:
        job.trim.copy_files(job.folder)
        job.trim.write_weights(job.folder)
    else:
        cut(job.cutting, job.cut_plan, job.folder)
    write_scores(job.scores, job.folder / SCORES_FILE)
    write_json(job.folder / CONFIG_FILE, job.config.portable().to_dict())


def repair_cut(job: Job) -> None:
    """Repair the cut checkpoint in closed form, and round it for the type that it is made for.

    Processes share the repair; the main one writes, and rounds alone.
    """
    if job.cuts_units:
        job.compensation = repair(job.cutting, job.config, job.calibration, job.cut_plan, job.folder)
    else:
        job.compensation = CompensationRecord("none")
    if is_main_process():
        round_cut(job)


def copy_student(job: Job) -> None:
    """Copy the checkpoint that is recovered, with everything in its folder that belongs to it."""
    assert job.student is not None, "`recover` starts from a checkpoint"
    copy_checkpoint(job.student, job.folder)
    if job.plan is None:
        write_json(job.folder / CONFIG_FILE, job.config.portable().to_dict())
