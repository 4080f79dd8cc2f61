"""The order of the stages: the only file that knows it.

source -> importance -> plan -> checkpoint -> recovery -> report -> card
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from .card.build import build_card
from .checkpoint.session import Session as Session
from .checkpoint.session import all_texts, check_request
from .checkpoint.source import load_model
from .checkpoint.tensors import DTYPES, overwrite_tensor, read_index
from .core.json_files import read_json, write_json
from .core.output import check_not_inside, check_output, staged_folder
from .core.processes import is_main_process, wait_for_all
from .core.progress import progress_bar
from .evaluation.measure_speed import check_positions
from .evaluation.stage import measure
from .importance.stage import LAYERS, score, scored_dimensions, select_layers, used_criteria
from .importance.weights import key_value_similarity
from .planning.config_edit import edit_config
from .planning.plan import make_plan, resolve_shape
from .recovery.stage import check_recovery, recover_cut
from .recovery.work_folder import work_folder
from .report.files import CONFIG_FILE, PLAN_FILE, REPORT_FILE, SCORES_FILE
from .report.plan import Plan
from .report.report import Report
from .report.scores import write_scores
from .surgery.compensation import check_windows, compensate, needs_cut_model
from .surgery.cut import write_checkpoint
from .text.calibration import window_kinds
from .text.sources import parse_sources


@dataclass(frozen=True)
class PlannedCut:
    """A plan with the scores that it was made from.

    Args:
        plan: The plan.
        scores: Config key to scores.
    """

    plan: Plan
    scores: dict[str, torch.Tensor]


def plan_cut(session: Session, *, command: str = "", measure: bool = True) -> PlannedCut:
    """Choose what stays.

    Args:
        session: The run.
        command: The command line that makes the same model; the card shows it.
        measure: Whether the run goes on to measure, so that its texts and tasks are checked as well.

    Raises:
        RequestError: The request cannot be met.
    """
    config, source = session.config, session.source
    check_request(config, measure=measure)
    if measure and config.benchmark:
        check_positions(config, source.config)
    shape = resolve_shape(source.binding, config.request)
    # The config class may know more than the rules: it is asked before the long work, with layers that do not matter.
    edit_config(source.raw_config, source.config, source.binding, shape, range(shape[LAYERS]))
    if measure and config.evaluate:
        session.evaluation_windows  # noqa: B018 - text that is too short is found now, not after the cut
    session.source.tensors  # noqa: B018 - corrupt files are found before the long work, not after
    scores = score(session, scored_dimensions(source.binding.shape, shape, merge=config.merge_key_value_heads))
    if config.merge_key_value_heads:
        scores["key_value_similarity"] = key_value_similarity(source.tensors, source.binding)
    used = used_criteria(config, scores)
    reads_text = config.compensation != "none" or any(criterion.reads_text for criterion in used.values())
    settings = {
        "importance": used["unit"].name if "unit" in used else None,
        "layer_importance": used["layer"].name if "layer" in used else None,
        "layer_selection": config.layer_selection if "layer" in used else None,
        "seed": config.seed,
        "compensation": {"method": config.compensation},
        "calibration": {
            "sources": [text.label for text in parse_sources(config.calibration)],
            "fingerprints": [text.fingerprint() for text in parse_sources(config.calibration)],
            "samples": config.calibration_samples,
            "length": config.calibration_length,
            "importance_samples": min(config.importance_samples, config.calibration_samples),
            "batch_size": config.batch_size,
        }
        if reads_text
        else None,
        "origin": {
            "base_model": config.base_model or (source.name if source.is_hub_id else None),
            "license": source.license,
            "license_details": dict(source.license_details),
            "languages": list(source.languages),
            "notes": list(source.notes),
            "command": command,
        },
    }
    plan = make_plan(
        model=session.base_name,
        revision=source.revision,
        raw_config=source.raw_config,
        config=source.config,
        binding=source.binding,
        shape=shape,
        request=config.request,
        scores=scores,
        settings=settings,
        layers=select_layers(session, shape, scores),
    )
    return PlannedCut(plan, scores)


def repair(session: Session, plan: Plan, folder: Path) -> Plan:
    """Repair a written checkpoint in closed form, and return the plan with what became of each projection.

    Args:
        session: The run; its source is the base.
        plan: The plan that the checkpoint was cut by.
        folder: The checkpoint.
    """
    binding = session.source.binding
    tensors = read_index(folder)

    def write(name: str, weight: torch.Tensor) -> None:
        overwrite_tensor(tensors[name], weight.to(DTYPES[tensors[name].dtype]).cpu())

    windows = session.calibration_windows
    repairs = compensate(
        session.model,
        binding,
        plan,
        windows,
        write,
        kinds=window_kinds(parse_sources(session.config.calibration), len(windows), seed=session.config.seed),
        cut_model=load_model(folder, session.dtype, session.device) if needs_cut_model(binding, plan) else None,
        batch_size=session.config.batch_size,
    )
    found = {"method": "ridge", "repairs": [asdict(repair) for repair in repairs]}
    return replace(plan, settings={**plan.settings, "compensation": found})


def command_line(session: Session, output: Path, *extra: str) -> str:
    """Return the command line that makes the same model; files go by their own names.

    Args:
        session: The run.
        output: The output folder.
        extra: More arguments.
    """
    source = session.source
    words = [*(["--gguf-file", source.gguf_file] if source.gguf_file else []), *extra]
    if source.revision:
        words += ["--revision", source.revision]
    return session.config.portable().command(source.display_name, output.resolve().name, *words)


def shrink(
    session: Session,
    output: Path,
    *,
    overwrite: bool = False,
    command: str | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> Report:
    """Run all stages; the output folder appears whole or not at all.

    Args:
        session: The run.
        output: The output folder.
        overwrite: Replace what is there.
        command: The command line that the card shows; by default the one that asks for the same.
        on_plan: Called with the plan before the cut.

    Returns:
        The report.

    Raises:
        RequestError: The request cannot be met; nothing was written.
        VerificationError: The written checkpoint was not what was planned; nothing was kept.
    """
    config, source = session.config, session.source
    if config.recovery != "none":
        check_recovery(session)
    if config.compensation == "ridge":
        check_windows(config.calibration_samples)  # now, not after scoring and cutting
    check_output(output, overwrite)
    inputs = [source.folder, Path(source.name), *(text.path for text in all_texts(config) if text.path)]
    check_not_inside(output, inputs)
    command = command or command_line(session, output)
    planned = plan_cut(session, command=command)
    on_plan(planned.plan)
    if not is_main_process():  # the others helped to score; one writes
        wait_for_all()
        return Report.from_json(read_json(output / REPORT_FILE))
    with staged_folder(output, overwrite=overwrite) as folder:
        plan = planned.plan
        cut(session, plan, folder)
        if plan.settings["compensation"]["method"] == "ridge":
            plan = repair(session, plan, folder)
        if config.recovery != "none":
            plan = recover_cut(session, plan, folder, output)
        write_scores(planned.scores, folder / SCORES_FILE)
        write_json(folder / PLAN_FILE, plan.to_json())
        write_json(folder / CONFIG_FILE, config.portable().to_dict())
        report = measure(session, folder, name=output.resolve().name)
        write_json(folder / REPORT_FILE, report.to_json())
        build_card(folder)
    if config.recovery != "none":
        shutil.rmtree(work_folder(output), ignore_errors=True)
    wait_for_all()
    return report


def cut(session: Session, plan: Plan, folder: Path) -> None:
    """Write and verify the checkpoint."""
    source = session.source
    edited = edit_config(source.raw_config, source.config, source.binding, plan.new_shape, plan.layers)
    with progress_bar(
        "writing the checkpoint (MB)", source.nbytes * plan.new_num_parameters // plan.num_parameters // 10**6
    ) as advance:
        pending = 0

        def wrote(count: int) -> None:
            nonlocal pending
            pending += count
            advance(pending // 10**6)
            pending %= 10**6

        write_checkpoint(source.folder, source.tensors, source.binding, plan, edited, folder, progress=wrote)
