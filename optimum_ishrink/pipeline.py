"""The order of the stages: the only file that knows it.

source -> importance -> plan -> checkpoint -> recovery -> report -> card
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .architectures.axes import layer_module
from .artifacts import (
    CONFIG_FILE,
    PLAN_FILE,
    REPORT_FILE,
    SCORES_FILE,
    ModelReport,
    Plan,
    Report,
    read_json,
    write_json,
)
from .card import build_card, write_scores
from .configuration import IShrinkConfig
from .data import TextSource, parse_sources, window_kinds
from .errors import DataError, RequestError
from .evaluation import (
    LatencySettings,
    environment,
    evaluate_tasks,
    measure_latency,
    open_tasks,
    text_measurements,
)
from .importance import (
    key_value_similarity,
)
from .output_folder import check_not_inside, check_output, staged_folder
from .parallel import is_main_process, process_count, wait_for_all
from .planning import (
    edit_config,
    make_plan,
    resolve_shape,
)
from .progress import progress_bar
from .recovery import (
    LayerMap,
    RecoveryText,
    Trained,
    check_tokenizers,
    check_vocabularies,
    process_state,
    recovery_text,
    save_adapter,
    train_checkpoint,
    work_folder,
    write_trained,
)
from .scoring import score, scored_dimensions, select_layers, used_criteria
from .session import Session as Session
from .session import display_name as display_name
from .session import evaluation_sources as evaluation_sources
from .source import Source, load_model, open_source
from .surgery import compensate, needs_cut_model, write_checkpoint
from .surgery.checkpoint import carry_files
from .tensor_files import DTYPES, TensorInfo, overwrite_tensor, read_index, read_tensor

LAYERS = "num_hidden_layers"


@dataclass(frozen=True)
class PlannedCut:
    """A plan with the scores that it was made from.

    Args:
        plan: The plan.
        scores: Config key to scores.
    """

    plan: Plan
    scores: dict[str, torch.Tensor]


def check_request(config: IShrinkConfig, *, measure: bool = True) -> None:
    """Check what can be checked before any long work: the texts exist, and none is both calibrated and measured on.

    Raises:
        DataError: A text is missing, or would be both.
    """
    read = {"calibration": parse_sources(config.calibration)}
    if config.recovery != "none":
        read["recovery"] = config.recovery_settings.data
    evaluation = evaluation_sources(config) if measure and config.evaluate else ()
    for source in (*(text for texts in read.values() for text in texts), *evaluation):
        if source.path is not None:
            next(iter(source.documents()))
    if any(source.is_self for source in evaluation):
        raise DataError("eval_text cannot be 'self': what the model says itself is no independent text")
    for purpose, texts in read.items():
        resolved = {source.path.resolve() if source.path else source.text for source in texts}
        for source in evaluation:
            if (source.path.resolve() if source.path else source.text) in resolved:
                raise DataError(
                    f"{source.text} is given for {purpose} and for evaluation; measure on text it has not seen"
                )
    if measure and config.tasks:
        open_tasks(config.tasks, config.include_path)


def all_texts(config: IShrinkConfig) -> tuple[TextSource, ...]:
    """Return every text that a run reads."""
    return (*parse_sources(config.calibration), *parse_sources(config.recovery_data), *evaluation_sources(config))


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
    return session.config.portable().command(display_name(source), output.resolve().name, *words)


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
            base, shrunk = add_speed(config, base, shrunk, model, session.model)
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
    for source, (label, windows) in zip(evaluation_sources(config), session.evaluation_windows.items(), strict=True):
        settings = text_settings(config, source)
        old, new = text_measurements(model, base_model, windows, label, settings)
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


def add_speed(
    config: IShrinkConfig, base: ModelReport, shrunk: ModelReport, model: Any, base_model: Any
) -> tuple[ModelReport, ModelReport]:
    """Time both models in turn, and return both reports with the figures added."""
    settings = LatencySettings(config.benchmark_prompt_length, config.benchmark_new_tokens, config.benchmark_rounds)
    models = {"shrunk": model} if base_model is None else {"base": base_model, "shrunk": model}
    found = measure_latency(models, settings)
    if base_model is not None:
        base = replace(base, speed=base.speed + found["base"])
    return base, replace(shrunk, speed=shrunk.speed + found["shrunk"])


def measure_alone(session: Session, base: Source | None, *, evaluate: bool, benchmark: bool) -> Report:
    """Measure any two models, or one: nothing is cut.

    Args:
        session: The run; its source is the model in question.
        base: What it is compared with, or None.
        evaluate: Measure texts and tasks.
        benchmark: Measure speed.

    Raises:
        DataError: A text cannot be used, or the two models do not share a vocabulary.
    """
    config = session.config
    for source in evaluation_sources(config) if evaluate else ():
        if source.is_self:
            raise DataError("eval_text cannot be 'self': what the model says itself is no independent text")
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
        pair = add_speed(config, *pair, session.model, base_model)
    return Report(pair[0] if base is not None else None, pair[1], environment(session.device, session.dtype))


def check_recovery(session: Session) -> None:
    """Check what can be checked of a recovery before the cut, its text included.

    Args:
        session: The run; its source is the unpruned model.

    Raises:
        RequestError: `torchrun` started several processes: they may share a recovery, but only one can cut. Or the
            recovery cannot be had as it was asked for.
        DataError: There is too little text, or none with answers.
    """
    config = session.config
    if process_count() > 1:
        raise RequestError(
            "shrink runs in one process; cut with --recovery none, then run `ishrink recover` in several processes"
        )
    check_device(session.device)
    adapter_base(config, None)
    if config.recovery_teacher:
        check_teacher(open_source(config.recovery_teacher), session.source.config, session.tokenizer)
    settings = config.recovery_settings
    check_start(config, is_base=not config.recovery_teacher)
    recovery_text(
        settings.data,
        session.tokenizer,
        tokens=settings.tokens,
        length=settings.length,
        step=settings.batch_size,
        labels=settings.labels,
        seed=settings.seed,
        sample=lambda count: torch.zeros(count, settings.length, dtype=torch.int64),
    )


def check_device(device: torch.device) -> None:
    """Check that transformers' trainer can use a device.

    Raises:
        RequestError: It is not the first CUDA device that this process sees.
    """
    if device.index:
        raise RequestError(
            f"recovery trains on the first CUDA device that it sees, not on {device}; "
            f"set CUDA_VISIBLE_DEVICES={device.index} and leave out --device"
        )


def check_start(config: IShrinkConfig, *, is_base: bool) -> None:
    """Check that an adapter can start from the cut, where that was asked for.

    Args:
        config: The run's config.
        is_base: Whether the plan is known and the teacher is the unpruned model.

    Raises:
        RequestError: It cannot.
    """
    if config.recovery_lora_start != "zero" and not (is_base and config.recovery_settings.uses_lora):
        raise RequestError(
            "recovery_lora_start='closed-form' solves for what was cut: it needs recovery_train='lora', a model that "
            "ishrink cut, and the unpruned model as the teacher"
        )


def adapter_base(config: IShrinkConfig, student: Source | None) -> str | None:
    """Return the Hub id that a kept adapter names as its base; None when none is kept.

    Args:
        config: The run's config.
        student: The pruned model, or None when it has no name yet.

    Raises:
        RequestError: It is to be found out, and the pruned model has no Hub id; or no adapter is trained.
    """
    if config.recovery_keep_adapter and not config.recovery_settings.uses_lora:
        raise RequestError(
            f"--keep-adapter keeps a LoRA adapter, and recovery_train={config.recovery_train!r} trains none"
        )
    if config.recovery_keep_adapter != "auto":
        return str(config.recovery_keep_adapter) if config.recovery_keep_adapter else None
    if student is None or not student.is_hub_id:
        raise RequestError(
            "an adapter names the pruned model that it belongs to, and this one has no name on the Hub; "
            "push it without recovery first, and name it: --keep-adapter USER/NAME"
        )
    return student.name


def recover_cut(session: Session, plan: Plan, folder: Path, output: Path) -> Plan:
    """Recover a checkpoint that was just cut, and return the plan with what was measured on the way.

    Args:
        session: The run; its source is the unpruned model, which is the teacher unless another was named.
        plan: The plan that the checkpoint was cut by.
        folder: The checkpoint; its weights are replaced.
        output: Where the result will be; the run works beside it.
    """
    config = session.config
    teacher = open_source(config.recovery_teacher) if config.recovery_teacher else None
    student = Source(folder.name, folder)
    before = _divergences(measure_text(session, folder)) if config.evaluate else []
    trained = _train(session, student, teacher or session.source, plan, output, is_base=teacher is None)
    name = None if teacher is None else display_name(teacher)
    facts = finish_recovery(config, folder, trained, before, adapter_base(config, None), teacher=name)
    return replace(plan, settings={**plan.settings, "recovery": facts})


def check_teacher(teacher: Source, student: Any, tokenizer: Any) -> None:
    """Check that another model can teach this one.

    Args:
        teacher: The teacher.
        student: The student's config.
        tokenizer: The student's tokenizer.

    Raises:
        RequestError: They do not share a tokenizer.
    """
    check_vocabularies(student, teacher.config)
    check_tokenizers(tokenizer, teacher.load_tokenizer())


def _train(
    session: Session, student: Source, teacher: Source | None, plan: Plan | None, output: Path, *, is_base: bool
) -> Trained:
    """Train a checkpoint beside its output.

    Args:
        session: The run; its model is the unpruned one when that is the teacher.
        student: The pruned checkpoint.
        teacher: Whom to learn from, or None.
        plan: The plan that it was cut by, or None.
        output: Where the result will be.
        is_base: Whether the teacher is the unpruned model.
    """
    config, settings = session.config, session.config.recovery_settings
    binding = student.binding
    count = binding.sizes["layers"]

    def load_teacher() -> Any:
        assert teacher is not None, "settings without a teacher ask for none"
        return session.model if is_base else teacher.load_model(session.dtype, session.device)

    def layer_map(model: Any) -> LayerMap:
        if is_base and plan is not None:
            return LayerMap.of_kept(plan.layers, plan.shape[LAYERS])
        assert teacher is not None
        return LayerMap.even(count, teacher.binding.sizes["layers"])

    def start(text: RecoveryText) -> dict[str, torch.Tensor]:
        assert plan is not None
        windows = text.input_ids[: min(text.trained, config.calibration_samples)]
        return closed_form_start(session, plan, student, windows, settings.lora.rank)

    return train_checkpoint(
        student.folder,
        work_folder(output),
        settings,
        session.tokenizer,
        teacher_folder=teacher.folder if teacher is not None and settings.needs_teacher_model else None,
        load_teacher=load_teacher,
        layers=tuple(layer_module(binding, layer) for layer in range(count)),
        layer_map=layer_map,
        start=start,
        dtype=session.dtype,
        device=session.device,
        plan=None if plan is None else plan.to_json(),
    )


def closed_form_start(
    session: Session, plan: Plan, student: Source, windows: torch.Tensor, rank: int
) -> dict[str, torch.Tensor]:
    """Return what a map of low rank has to add to each projection that reads what was cut, by its name.

    Args:
        session: The run; its model is the unpruned one.
        plan: The plan that the student was cut by.
        student: The pruned checkpoint.
        windows: Windows to solve on, shape (windows, length).
        rank: The maps' rank.
    """
    model = load_model(student.folder, session.dtype, session.device)
    weights: dict[str, torch.Tensor] = {}
    compensate(
        session.model,
        session.source.binding,
        plan,
        windows,
        weights.__setitem__,
        cut_model=model,  # the student may have been repaired already: its own weights are what is added to
        batch_size=session.config.batch_size,
        rank=rank,
    )
    tensors = student.tensors
    return {name: weight.cpu() - read_tensor(tensors[name]).double() for name, weight in weights.items()}


def measure_text(session: Session, folder: Path) -> ModelReport:
    """Measure a checkpoint on the evaluation texts, against the base.

    Args:
        session: The run; its source is the base.
        folder: The checkpoint.
    """
    model = load_model(folder, session.dtype, session.device)
    report = ModelReport("", 0, 0)
    for source, (label, windows) in zip(
        evaluation_sources(session.config), session.evaluation_windows.items(), strict=True
    ):
        settings = text_settings(session.config, source)
        _, found = text_measurements(model, session.model, windows, label, settings)
        report = replace(report, quality=report.quality + found)
    return report


def text_settings(config: IShrinkConfig, source: TextSource) -> dict[str, Any]:
    """Return what a report says of an evaluation text."""
    return {"length": config.eval_length, "seed": config.seed, "fingerprint": source.fingerprint()}


def _divergences(report: ModelReport) -> list[dict[str, Any]]:
    """Return a report's figures against the base as plain values."""
    return [asdict(m) for m in report.quality if m.metric in ("kl_divergence", "top1_agreement")]


def finish_recovery(
    config: IShrinkConfig,
    folder: Path,
    trained: Trained,
    before: Sequence[Mapping[str, Any]],
    base: str | None,
    *,
    teacher: str | None,
) -> dict[str, Any]:
    """Write what was trained into a checkpoint, and return what a plan says of it.

    Args:
        config: The run's config.
        folder: The checkpoint; its weights are replaced.
        trained: What came of the training.
        before: What was measured before it.
        base: Hub id that a kept adapter names as its base; None to keep none.
        teacher: Name of the teacher; None when it was the unpruned model, or when there was none.
    """
    settings = config.recovery_settings
    write_trained(folder, trained, settings)
    if base is not None:
        save_adapter(folder, trained, base)
    return {
        **trained.facts,
        "data": [source.label for source in settings.data],
        "fingerprints": [source.fingerprint() for source in settings.data],
        "teacher": teacher,
        "adapter_base": base,
        "before": list(before),
    }


def recover(
    student: Source, teacher: Source | None, config: IShrinkConfig, output: Path, *, overwrite: bool = False
) -> Report | None:
    """Recover a pruned checkpoint into a new output folder, which appears whole or not at all.

    Under `torchrun`, all processes train and the first one writes.

    Args:
        student: The pruned checkpoint: an output folder of shrink, or any other.
        teacher: Whom to learn from; the base that the plan names when None.
        config: What is asked for.
        output: The output folder.
        overwrite: Replace what is there.

    Returns:
        The report; None in processes that write nothing.

    Raises:
        RequestError: The request cannot be met; nothing was written.
        TrainingError: The training stopped before its end; the same command goes on.
    """
    settings = config.recovery_settings
    base = adapter_base(config, student)
    check_output(output, overwrite)
    texts = [text.path for text in (*settings.data, *evaluation_sources(config)) if text.path]
    check_not_inside(output, [student.folder, *([teacher.folder] if teacher else []), *texts])
    check_request(config)
    plan = Plan.from_json(read_json(student.folder / PLAN_FILE)) if (student.folder / PLAN_FILE).is_file() else None
    if teacher is None:
        teacher = _named_base(plan)
    if teacher is None and settings.needs_teacher_model:
        raise RequestError(
            f"recovery={settings.loss!r} on {','.join(config.recovery_data)} needs a teacher, and the folder names no "
            "base on the Hub; pass --teacher with the unpruned model"
        )
    is_base = plan is not None and teacher is not None and _is_base(teacher, plan)
    session = Session(teacher if is_base and teacher is not None else student, config)
    check_start(config, is_base=is_base)
    if process_count() == 1:
        check_device(session.device)
    else:
        session.device = process_state(session.device).device
    if teacher is not None:
        check_teacher(teacher, student.config, student.load_tokenizer())
    trained = _train(session, student, teacher, plan, output, is_base=is_base)
    if not process_state(session.device).is_main_process:
        return None
    with staged_folder(output, overwrite=overwrite) as folder:
        copy_checkpoint(student, folder)
        old = Report.from_json(read_json(folder / REPORT_FILE)) if (folder / REPORT_FILE).is_file() else None
        before = []
        if config.evaluate and is_base:
            before = _divergences(measure_text(session, folder))
        named = None if is_base or teacher is None else display_name(teacher)
        facts = finish_recovery(config, folder, trained, before, base, teacher=named)
        report = _measure_recovered(session, folder, old, is_base=is_base, name=output.resolve().name)
        write_json(folder / REPORT_FILE, report.to_json())
        if plan is not None:
            command = config.portable().command(display_name(student), output.resolve().name, verb="recover")
            origin = plan.settings["origin"]
            origin = {**origin, "command": "\n".join(line for line in (origin["command"], command) if line)}
            settings_after = {**plan.settings, "origin": origin, "recovery": facts}
            write_json(folder / PLAN_FILE, replace(plan, settings=settings_after).to_json())
            build_card(folder)
        else:
            write_json(folder / CONFIG_FILE, config.portable().to_dict())
    shutil.rmtree(work_folder(output), ignore_errors=True)
    return report


def _named_base(plan: Plan | None) -> Source | None:
    """Return the base that a plan names on the Hub, or None."""
    name = None if plan is None else plan.settings.get("origin", {}).get("base_model")
    return open_source(name, revision=plan.revision) if plan is not None and name else None


def _is_base(teacher: Source, plan: Plan) -> bool:
    """Whether a model has the shape that a plan started from."""
    same = dict(teacher.binding.shape) == dict(plan.shape)
    return same and teacher.raw_config.get("model_type") == plan.model_type


def copy_checkpoint(source: Source, folder: Path) -> None:
    """Copy a checkpoint with what stands beside it: tokenizer, licence, plan, config, scores, report.

    Args:
        source: The checkpoint.
        folder: An existing, empty folder.
    """
    carry_files(source.folder, folder)
    wanted = [*read_index(source.folder).values()]
    names = {info.file.name for info in wanted} | {"config.json"}
    names |= {path.name for path in source.folder.glob("ishrink_*") if path.is_file()}
    names |= {path.name for path in source.folder.glob("*.safetensors.index.json")}
    for name in sorted(names):
        shutil.copyfile(source.folder / name, folder / name)


def _measure_recovered(session: Session, folder: Path, old: Report | None, *, is_base: bool, name: str) -> Report:
    """Measure what was recovered: beside its base where that is the teacher, else alone."""
    config = session.config
    if is_base:
        return measure(session, folder, name=name)
    shrunk = count(read_index(folder), name)
    if config.evaluate or config.benchmark:
        model = load_model(folder, session.dtype, session.device)
        if config.evaluate:
            _, shrunk = add_quality(session, shrunk, shrunk, model, None)
        if config.benchmark:
            _, shrunk = add_speed(config, shrunk, shrunk, model, None)
    return Report(None if old is None else old.base, shrunk, environment(session.device, session.dtype))
