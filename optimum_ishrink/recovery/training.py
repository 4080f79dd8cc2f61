"""One recovery: from a model, a teacher and text to trained parameters."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import EarlyStoppingCallback, TrainingArguments

from ..checkpoint.source import stored_names
from ..core.durable import write_whole
from ..errors import RequestError, TrainingError
from ..modeling.head import CHUNK
from .callbacks import FinishWhole, ShowProgress, StopOnNaN, StopOnSignal
from .settings import WARM_UP_SHARE, RecoverySettings
from .student import Student
from .teacher import LayerMap, LiveTeacher, Teacher
from .teacher_cache import CachedTeacher, write_teacher_cache
from .trainable import add_lora, keep_autocast_inputs, train_parameters, trained_parameters
from .trainer import RecoveryTrainer
from .training_text import RecoveryText, TrainingWindows
from .work_folder import last_step

BEFORE, SOLVED = "before.json", "solved.json"


@dataclass(frozen=True)
class Trained:
    """What a recovery gave.

    Args:
        parameters: The trained parameters of the best checkpoint, by name, float32 on the CPU.
        adapter: PEFT's model around the model, or None when no adapter was trained.
        facts: What was measured on the way, as plain values for reports.
        losses: The loss of every step.
        learning_rates: The learning rate of every step.
        solved: Weights that were solved anew before the training, by their names in the checkpoint, in its dtype.
    """

    parameters: Mapping[str, torch.Tensor]
    adapter: Any
    facts: Mapping[str, Any]
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...] = field(default=())
    solved: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def adds(self) -> bool:
        """Whether the training lowered the held-out loss below all that it was before."""
        facts = self.facts
        before = [facts["held_out_loss_before"], *([facts["held_out_loss_solved"]] if self.solved else [])]
        return bool(facts["held_out_loss"] < min(before))

    @property
    def repairs(self) -> bool:
        """Whether the closed form alone lowered it."""
        return bool(self.solved) and self.facts["held_out_loss_solved"] < self.facts["held_out_loss_before"]


def process_state(device: torch.device) -> PartialState:
    """Return what accelerate knows of this process and the others; it is made for a device when it is first asked."""
    return PartialState(cpu=device.type == "cpu")


def micro_batch(batch_size: int, most: int, processes: int) -> int:
    """Return how many windows one process runs at once: the most that divide its share of a step.

    Args:
        batch_size: Windows in a step.
        most: Windows run at once, at most.
        processes: How many processes share a step.

    Raises:
        RequestError: A step cannot be shared evenly.
    """
    if batch_size % processes:
        raise RequestError(
            f"a step of {batch_size} windows cannot be shared by {processes} processes; "
            f"set --recovery-batch-size to a multiple of {processes}"
        )
    share = batch_size // processes
    return max(size for size in range(1, min(most, share) + 1) if share % size == 0)


def choose_teacher(
    model: Any, settings: RecoverySettings, text: RecoveryText, cache: Path | None, batch_size: int
) -> Teacher | None:
    """Return whom to learn from: the model itself, or what it said of the text once.

    Args:
        model: The teacher's model, or None.
        settings: The recovery's settings.
        text: The recovery text.
        cache: Folder of what the teacher said; it is filled by the first process when it is not there. None to run
            the model on every batch.
        batch_size: Windows run at once.
    """
    if model is None or not settings.needs_teacher:
        return None
    live = LiveTeacher(
        model,
        logits=settings.reads("logits"),
        layers=settings.reads("hidden_states"),
        values=settings.reads("values"),
        k=settings.top_k,
        temperature=settings.temperature,
    )
    if cache is None or live.k is None or any(live.wants.values()):
        return live
    state = process_state(model.device)
    if state.is_main_process and not cache.is_dir():
        rows = max(1, CHUNK // model.config.vocab_size)
        write_teacher_cache(cache, live, text.input_ids, batch_size=batch_size, rows=rows)
    state.wait_for_everyone()
    return CachedTeacher(cache)


def training_arguments(
    settings: RecoverySettings, folder: Path, device: torch.device, micro: int, steps: int, processes: int
) -> TrainingArguments:
    """Return transformers' arguments for a recovery.

    Args:
        settings: The recovery's settings.
        folder: The working folder.
        device: Where to compute.
        micro: Windows run at once in one process.
        steps: Steps in all.
        processes: How many processes share a step.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=device.type == "cpu",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // (micro * processes),
        max_steps=steps,
        learning_rate=settings.peak_learning_rate,
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(WARM_UP_SHARE * steps)),
        dataloader_drop_last=True,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=settings.save_steps,
        save_strategy="steps",
        save_steps=settings.save_steps,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        ddp_find_unused_parameters=not any(term.loss.reads == "logits" for term in settings.terms),
        seed=settings.seed,
        report_to="none",
        disable_tqdm=True,
    )
    # One process trains on one device; transformers would spread it over all that it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def train(
    model: Any,
    teacher: Teacher | None,
    text: RecoveryText,
    settings: RecoverySettings,
    folder: Path,
    *,
    layers: Sequence[str],
    layer_map: LayerMap | None = None,
    start: Mapping[str, torch.Tensor] | None = None,
    solved: Mapping[str, torch.Tensor] | None = None,
    micro: int | None = None,
) -> Trained:
    """Train a model, or go on from the last checkpoint in the working folder.

    Args:
        model: The causal language model in its compute dtype; it is changed.
        teacher: Whom to learn from.
        text: The recovery text.
        settings: The recovery's settings.
        folder: The working folder, as `open_work` left it.
        layers: Names of the modules of the model's layers, in order.
        layer_map: Which teacher's layer each layer stands for.
        start: What an adapter adds to weights at the start, by their names.
        solved: Weights that take the place of the model's own before the training, by their names in its checkpoint.
        micro: Windows run at once in one process; by default what the settings allow.

    Raises:
        TrainingError: The loss became NaN or infinite, or a signal stopped the run; the last checkpoint is kept.
        OutputError: There is no room for a checkpoint; the last whole one is kept.
        RequestError: The parameters to train are not there.
    """
    device = model.device
    processes = process_state(device).num_processes
    dtype = model.dtype
    adapter = None
    own = dict(model.named_parameters())  # by the names that they have before an adapter wraps them
    if settings.uses_lora:
        adapter = add_lora(model, settings.lora, seed=settings.seed, start=start)
    else:
        train_parameters(model, settings.parts, layers)
    mixed = dtype != torch.float32
    if mixed:
        keep_autocast_inputs(model)
    if settings.checkpointing:
        _recompute_layers(model)
    student = Student(
        model, settings.terms, teacher, layer_map, temperature=settings.temperature, autocast=dtype if mixed else None
    )
    micro = micro or micro_batch(settings.batch_size, settings.micro_batch_size, processes)
    steps = text.trained * settings.epochs // settings.batch_size
    arguments = training_arguments(settings, folder, device, micro, steps, processes)
    bar, stop = ShowProgress(), StopOnSignal()
    trainer = RecoveryTrainer(
        student,
        arguments,
        text,
        TrainingWindows(text, settings.epochs, settings.seed),
        [FinishWhole(), StopOnNaN(folder), stop, EarlyStoppingCallback(settings.patience), bar],
    )
    losses = {"held_out_loss_before": _known_loss(trainer, folder / BEFORE)}
    if solved:
        names = {stored: name for name, stored in stored_names(list(own), list(solved)).items()}
        with torch.no_grad():
            for stored, value in solved.items():
                own[names[stored]].copy_(value)
        losses["held_out_loss_solved"] = _known_loss(trainer, folder / SOLVED)
    resumed = last_step(folder)
    began = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=None if resumed is None else str(folder / f"checkpoint-{resumed}"))
    finally:
        bar.close()
        stop.close()
    seconds = time.perf_counter() - began
    if stop.stopped and trainer.state.global_step < steps:
        raise TrainingError(
            f"stopped by SIGTERM after step {trainer.state.global_step} of {steps}; "
            f"the same command goes on from there (its work is in {folder})"
        )
    history = trainer.state.log_history
    trained_now = (trainer.state.global_step - (resumed or 0)) * settings.batch_size * text.input_ids.shape[1]
    evaluations = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    return Trained(
        {name: value.detach().float().cpu() for name, value in _best_parameters(trainer).items()},
        adapter,
        {
            "loss": settings.loss,
            "trained": settings.trained,
            "trained_parameters": sum(p.numel() for p in trained_parameters(student).values()),
            "learning_rate": settings.peak_learning_rate,
            "steps": trainer.state.global_step,
            "planned_steps": steps,
            "best_step": trainer.state.best_global_step,
            "tokens": trainer.state.global_step * settings.batch_size * text.input_ids.shape[1],
            "held_out_windows": text.held_out,
            **losses,
            "held_out_loss": trainer.state.best_metric,
            "held_out_losses": evaluations,
            "seconds": round(seconds, 1),
            "tokens_per_second": round(trained_now / seconds, 1),
            "resumed_from_step": resumed,
            "processes": processes,
        },
        tuple(entry["loss"] for entry in history if "loss" in entry),
        tuple(entry["learning_rate"] for entry in history if "learning_rate" in entry),
        dict(solved or {}),
    )


def _best_parameters(trainer: RecoveryTrainer) -> Mapping[str, torch.Tensor]:
    """Return what was trained, by the model's own names; gathered when it is spread over processes."""
    student = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    names = trained_parameters(student)
    if trainer.is_fsdp_enabled:
        whole = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        names = {name: whole[name] for name in names if name in whole}
    return {name.removeprefix("model."): value for name, value in names.items()}


def _recompute_layers(model: Any) -> None:
    """Switch on activation checkpointing, under whichever name this transformers has for it."""
    how = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def _known_loss(trainer: RecoveryTrainer, path: Path) -> float:
    """Return the held-out loss before the first step; a run that goes on reads what it measured then."""
    if path.is_file():
        found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        trainer.accelerator.wait_for_everyone()
        return found["loss"]
    found = trainer.held_out_loss()
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        write_whole(path, json.dumps(found).encode())
    return found["loss"]
