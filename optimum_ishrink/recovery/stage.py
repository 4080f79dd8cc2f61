"""Recovery as one run asks for it: of a fresh cut, or of a checkpoint that is there already."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..architectures.axes import layer_module
from ..card.build import build_card
from ..checkpoint.session import Session, check_request, evaluation_sources
from ..checkpoint.source import Source, load_model, open_source
from ..checkpoint.tensors import DTYPES, read_index, read_tensor
from ..checkpoint.writing import carry_files
from ..configuration import IShrinkConfig
from ..core.json_files import read_json, write_json
from ..core.output import check_not_inside, check_output, staged_folder
from ..core.processes import is_main_process, process_count
from ..core.progress import note
from ..errors import RequestError
from ..evaluation.measure_speed import check_positions
from ..evaluation.stage import measure, measure_checkpoint, measure_text
from ..report.files import CONFIG_FILE, PLAN_FILE, REPORT_FILE
from ..report.plan import Plan
from ..report.report import ModelReport, Report
from ..surgery.compensation import check_windows, compensate
from .teacher import LayerMap, check_tokenizers, check_vocabularies
from .train_checkpoint import save_adapter, train_checkpoint, write_solved, write_trained
from .training import Trained
from .training_text import RecoveryText, recovery_text
from .work_folder import work_folder


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
    """Check that the training can start from the cut, where that was asked for.

    Args:
        config: The run's config.
        is_base: Whether the plan is known and the teacher is the unpruned model.

    Raises:
        RequestError: It cannot.
        DataError: There are too few windows to solve on.
    """
    if config.recovery_compensation != "none":
        if not is_base:
            raise RequestError(
                f"recovery_compensation={config.recovery_compensation!r} solves for what was cut: it needs a model "
                "that ishrink cut, and the unpruned model as the teacher"
            )
        windows, off = "recovery_compensation_samples", "recovery_compensation='none'"
        check_windows(config.recovery_compensation_samples, samples=windows, off=off)
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
    if config.recovery_keep_adapter and config.recovery_compensation != "none":
        raise RequestError(
            "a kept adapter belongs on the pruned model, and recovery_compensation changes other weights of it; "
            "leave out one of them"
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
    name = None if teacher is None else teacher.display_name
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
            return LayerMap.of_kept(plan.layers, plan.shape["num_hidden_layers"])
        assert teacher is not None
        return LayerMap.even(count, teacher.binding.sizes["layers"])

    def start(text: RecoveryText) -> dict[str, torch.Tensor]:
        assert plan is not None
        found = solve_cut(session, plan, student, text, config.calibration_samples, rank=settings.lora.rank)
        return {name: weight - read_tensor(student.tensors[name]).double() for name, weight in found.items()}

    def solve(text: RecoveryText) -> dict[str, torch.Tensor]:
        assert plan is not None
        found = solve_cut(session, plan, student, text, settings.compensation_samples)
        return {name: weight.to(DTYPES[student.tensors[name].dtype]) for name, weight in found.items()}

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
        solve=solve,
        dtype=session.dtype,
        device=session.device,
        plan=None if plan is None else plan.to_json(),
    )


def solve_cut(
    session: Session, plan: Plan, student: Source, text: RecoveryText, samples: int, *, rank: int | None = None
) -> dict[str, torch.Tensor]:
    """Solve the projections of a pruned model that read what was cut anew, on recovery text.

    Args:
        session: The run; its model is the unpruned one.
        plan: The plan that the student was cut by.
        student: The pruned checkpoint.
        text: The recovery text; what is held out of it is not read.
        samples: Windows to solve on, at most.
        rank: Rank that the change of a weight may have; any when None.

    Returns:
        The weights that are better than the student's own, by their names, float64 on the CPU.
    """
    count = min(text.trained, samples)
    weights: dict[str, torch.Tensor] = {}
    compensate(
        session.model,
        session.source.binding,
        plan,
        text.input_ids[:count],
        weights.__setitem__,
        kinds=text.kinds[:count],
        # The student may have been repaired already: its own weights are what is compared with.
        cut_model=load_model(student.folder, session.dtype, session.device),
        batch_size=session.config.batch_size,
        rank=rank,
    )
    return {name: weight.cpu() for name, weight in weights.items()}


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

    Training that lowered the held-out loss nowhere is not written: the weights stay as they were cut, or as they were
    solved where that helped, and a note says so.

    Args:
        config: The run's config.
        folder: The checkpoint; its weights are replaced.
        trained: What came of the training.
        before: What was measured before it.
        base: Hub id that a kept adapter names as its base; None to keep none.
        teacher: Name of the teacher; None when it was the unpruned model, or when there was none.
    """
    settings = config.recovery_settings
    facts = dict(trained.facts)
    if trained.adds:
        write_trained(folder, trained, settings)
        if base is not None:
            save_adapter(folder, trained, base)
    elif trained.repairs:
        write_solved(folder, trained)
        solved = facts["held_out_loss_solved"]
        note(
            f"recovery: the held-out loss was {solved:.4f} after the closed form and {facts['held_out_loss']:.4f} at "
            "best in training, so the weights stay as they were solved; try a lower --recovery-learning-rate"
        )
        facts |= {"held_out_loss": solved, "best_step": 0}
    else:
        note(
            f"recovery: the held-out loss was {facts['held_out_loss_before']:.4f} before and "
            f"{facts['held_out_loss']:.4f} at best, so the weights stay as they were cut; "
            "try a lower --recovery-learning-rate or more text"
        )
    return {
        **facts,
        "helped": trained.adds or trained.repairs,
        "data": [source.label for source in settings.data],
        "fingerprints": [source.fingerprint() for source in settings.data],
        "teacher": teacher,
        "adapter_base": base if trained.adds else None,
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
    if config.benchmark:
        check_positions(config, student.config)
    is_base = plan is not None and teacher is not None and _is_base(teacher, plan)
    session = Session(teacher if is_base and teacher is not None else student, config)
    check_start(config, is_base=is_base)
    if process_count() == 1:
        check_device(session.device)
    if teacher is not None:
        check_teacher(teacher, student.config, student.load_tokenizer())
    trained = _train(session, student, teacher, plan, output, is_base=is_base)
    if not is_main_process():
        return None
    with staged_folder(output, overwrite=overwrite) as folder:
        copy_checkpoint(student, folder)
        old = Report.from_json(read_json(folder / REPORT_FILE)) if (folder / REPORT_FILE).is_file() else None
        before = []
        if config.evaluate and is_base:
            before = _divergences(measure_text(session, folder))
        named = None if is_base or teacher is None else teacher.display_name
        facts = finish_recovery(config, folder, trained, before, base, teacher=named)
        report = _measure_recovered(session, folder, old, is_base=is_base, name=output.resolve().name)
        write_json(folder / REPORT_FILE, report.to_json())
        if plan is not None:
            command = config.portable().command(student.display_name, output.resolve().name, verb="recover")
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
    if is_base:
        return measure(session, folder, name=name)
    report = measure_checkpoint(session, folder, name=name)
    return replace(report, base=None if old is None else old.base)
