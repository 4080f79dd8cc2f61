"""One recovery: from a model, a teacher and text to trained parameters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainingArguments

from ..checkpoint.tensors import stored_names
from ..errors import RequestError, TrainingError
from ..report.recovery import RecoveryRecord
from .callbacks import FinishWhole, ShowProgress, StopOnNaN, StopOnSignal
from .exported_weights import ExportedValues, ExportedWeights
from .held_out import BEFORE, SOLVED, exit_losses, known_losses
from .kept_zeros import KeepZeros
from .on_policy import StudentText
from .options import RecoveryOptions
from .process_state import process_state
from .sharding import set_tensors, whole_tensors
from .student import Student
from .teacher import LayerMap, Teacher
from .trainable import (
    add_lora,
    keep_autocast_inputs,
    learning_rate_shares,
    train_parameters,
    trained_parameters,
)
from .trainer import RecoveryTrainer
from .training_text import RecoveryText, TrainingWindows
from .weight_average import WeightAverage
from .work_folder import last_step

WARM_UP_SHARE = 0.05
"""Share of the steps in which the learning rate rises from zero; it falls by a cosine after them."""


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Args:
        parameters: The trained parameters of the best checkpoint, by name, float32 on the CPU.
        adapter: PEFT's model around the model, or None when no adapter was trained.
        record: What was measured on the way, for the report.
        losses: The loss of every step.
        learning_rates: The learning rate of every step.
        solved: Weights that were re-fit before the training, by their names in the checkpoint, in its dtype.
        merged: Weights that an adapter was merged into, by their names in the model, in the checkpoint's dtype, where
            an export of them was trained for: merged anew, a few could be rounded otherwise.
    """

    parameters: Mapping[str, torch.Tensor]
    adapter: Any
    record: RecoveryRecord
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...] = field(default=())
    solved: Mapping[str, torch.Tensor] = field(default_factory=dict)
    merged: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def adds(self) -> bool:
        """Whether the training lowered the held-out loss below all that it was before."""
        return self.record.held_out_loss < min(each for each in self._losses_before if each is not None)

    @property
    def repairs(self) -> bool:
        """Whether the closed form alone lowered it."""
        before, solved = self._losses_before
        return solved is not None and solved < before

    @property
    def _losses_before(self) -> tuple[float, float | None]:
        return self.record.held_out_loss_before, self.record.held_out_loss_solved


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


def training_arguments(
    options: RecoveryOptions, folder: Path, device: torch.device, steps: int, processes: int
) -> TrainingArguments:
    """Return transformers' arguments for a recovery.

    Args:
        options: The recovery's options.
        folder: The working folder.
        device: Where to compute.
        steps: Steps in all.
        processes: How many processes share a step.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=device.type == "cpu",
        per_device_train_batch_size=options.recovery_batch_size // processes,  # `RecoveryTrainer` divides it
        max_steps=steps,
        learning_rate=options.peak_learning_rate,
        optim="adamw_torch_fused",
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(WARM_UP_SHARE * steps)),
        dataloader_drop_last=True,
        dataloader_pin_memory=False,  # `to_device` does it for what runs next
        remove_unused_columns=False,
        label_names=["labels"],
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=options.recovery_save_steps,
        save_strategy="steps",
        save_steps=options.recovery_save_steps,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        ddp_find_unused_parameters=not any(term.loss.reads == "logits" for term in options.terms),
        seed=options.seed,
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
    options: RecoveryOptions,
    folder: Path,
    *,
    device: torch.device | None = None,
    layers: Sequence[str],
    layer_map: LayerMap | None = None,
    start: Mapping[str, torch.Tensor] | None = None,
    solved: Mapping[str, torch.Tensor] | None = None,
    exported: ExportedValues | None = None,
    micro: int | None = None,
    sparse: Sequence[str] = (),
    on_policy: StudentText | None = None,
) -> Trained:
    """Train a model, or resume from the last checkpoint in the working folder.

    Args:
        model: The causal language model in its compute dtype; it is changed.
        teacher: The teacher, or None.
        text: The recovery text.
        options: The recovery's options.
        folder: The working folder, as `open_work` left it.
        device: Where to compute; by default where the model is, which is elsewhere only until processes share it.
        layers: Names of the modules of the model's layers, in order.
        layer_map: Which of the teacher's layers each layer corresponds to.
        start: What an adapter adds to weights at the start, by their names.
        solved: Weights that take the place of the model's own before the training, by their names in its checkpoint.
        exported: What an export will hold of the result, where that is to be trained; None for the result itself.
        micro: Windows run at once in one process; by default what the options allow.
        sparse: Names of the model's parameters whose zeros stay.
        on_policy: Windows that the model samples in place of some of the text's; None for none.

    Raises:
        TrainingError: The loss became NaN or infinite, or a signal stopped the run; the last checkpoint remains.
        NotFiniteError: The loss is NaN or infinite before the first step.
        OutputError: There is no room for a checkpoint; the last whole one remains.
        RequestError: The parameters to train are not there, or zeros are to stay in parameters that are spread over
            processes.
    """
    device = device or model.device
    processes = process_state(device).num_processes
    dtype = model.dtype
    adapter = None
    own = dict(model.named_parameters())  # by the names that they have before an adapter wraps them
    if options.uses_lora:
        adapter = add_lora(model, options, start=start)
    else:
        train_parameters(model, options.parts, layers)
    mixed = dtype != torch.float32
    if mixed:
        keep_autocast_inputs(model)
    if options.recovery_checkpointing:
        _recompute_layers(model)
    weights = None if exported is None else ExportedWeights(model, own, exported)
    student = Student(
        model,
        options.terms,
        teacher,
        layer_map,
        temperature=options.recovery_temperature,
        jsd_beta=options.recovery_jsd_beta,
        skew=options.recovery_skew,
        exits=options.recovery_early_exit or (),
        exit_weight=options.recovery_early_exit_weight,
        autocast=dtype if mixed else None,
    )
    micro = micro or micro_batch(options.recovery_batch_size, options.batch_windows, processes)
    steps = text.trained * options.recovery_epochs // options.recovery_batch_size
    arguments = training_arguments(options, folder, device, steps, processes)
    bar, stop = ShowProgress(), StopOnSignal()
    rates = None
    if options.recovery_layer_decay < 1:
        rates = learning_rate_shares(student, layers, options.recovery_layer_decay)
    zeros = KeepZeros([own[name] for name in sparse if name in own and own[name].requires_grad])
    trainer = RecoveryTrainer(
        student,
        arguments,
        text,
        TrainingWindows(text, options.recovery_epochs, options.seed, places=on_policy is not None),
        [FinishWhole(), StopOnNaN(folder), stop, EarlyStoppingCallback(options.recovery_patience), bar, zeros],
        weights=weights,
        average=None
        if options.recovery_ema is None
        else WeightAverage(options.recovery_ema, trained_parameters(student)),
        rates=rates,
        micro=micro,
        grows=options.batch_size is None,
        on_policy=on_policy,
    )
    places = {id(parameter): place for place, parameter in student.named_parameters()}
    trainer.share_weights()
    before, loss_solved = known_losses(trainer, folder / BEFORE), None
    if solved:
        names = {stored: name for name, stored in stored_names(list(own), list(solved)).items()}
        now = dict(student.named_parameters())  # where they are shared, others than before
        with trainer.exact_weights():
            set_tensors({stored: now[places[id(own[names[stored]])]] for stored in solved}, solved)
        loss_solved = known_losses(trainer, folder / SOLVED)["loss"]
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
            f"the same command resumes from there (its work is in {folder})"
        )
    history = trainer.state.log_history
    trained_now = (trainer.state.global_step - (resumed or 0)) * options.recovery_batch_size * text.input_ids.shape[1]
    evaluations = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    with trainer.exact_weights(changed=False):
        parameters = {name: value.detach().float().cpu() for name, value in _best_parameters(trainer).items()}
    return Trained(
        parameters,
        adapter,
        RecoveryRecord(
            loss=options.recovery,
            trained=options.recovery_train,
            trained_parameters=sum(p.numel() for p in trained_parameters(student).values()),
            learning_rate=options.peak_learning_rate,
            steps=trainer.state.global_step,
            planned_steps=steps,
            best_step=trainer.state.best_global_step,
            tokens=trainer.state.global_step * options.recovery_batch_size * text.input_ids.shape[1],
            held_out_windows=text.held_out,
            held_out_loss_before=before["loss"],
            held_out_loss_solved=loss_solved,
            held_out_loss=trainer.state.best_metric,
            held_out_losses=tuple(evaluations),
            seconds=round(seconds, 1),
            tokens_per_second=round(trained_now / seconds, 1),
            resumed_from_step=resumed,
            processes=processes,
            begins_with=text.begins_with,
            layer_decay=None if rates is None else options.recovery_layer_decay,
            ema=options.recovery_ema,
            on_policy=None if on_policy is None else options.recovery_on_policy,
            recovery_for=None if exported is None else exported.name,
            types=None if exported is None else exported.types,
            rounding=None if exported is None else "calibrated" if options.starts_calibrated else "nearest",
            held_out_loss_stored=trainer.stored_loss(),
            early_exits=exit_losses(options.recovery_early_exit or (), before, history),
        ),
        tuple(entry["loss"] for entry in history if "loss" in entry),
        tuple(entry["learning_rate"] for entry in history if "learning_rate" in entry),
        dict(solved or {}),
        {} if weights is None else weights.merged(),
    )


def _best_parameters(trainer: RecoveryTrainer) -> Mapping[str, torch.Tensor]:
    """Return what was trained, by the model's own names; gathered when it is spread over processes."""
    student = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    whole = whole_tensors(trained_parameters(student))
    return {name.removeprefix("model."): value for name, value in whole.items()}


def _recompute_layers(model: Any) -> None:
    """Switch on activation checkpointing, under whichever name this transformers has for it."""
    how = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
