"""The trainer: transformers' own, with the student's loss, whole checkpoints and an evaluation in chunks."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from ..core.device import to_device
from ..core.durable import disk_errors, load_tensors, rename_folder, save_tensors, write_whole
from ..core.finite import not_finite
from ..core.micro_batch import MicroBatch
from ..errors import NotFiniteError, TrainingError
from .exported_weights import ExportedWeights, StepOnExact
from .on_policy import StudentText
from .sharding import gather_no_more, set_tensors, shard_on_cpus, share_student, whole_tensors
from .student import Student, count_tokens
from .trainable import trained_parameters
from .training_text import RecoveryText, TrainingWindows
from .weight_average import WeightAverage
from .work_folder import PREFIX, drop_old_checkpoints, last_step

WEIGHTS, AVERAGE = "trained.safetensors", "average.safetensors"
STATE = "trainer_state.json"

MEMORY_REMEDY = (
    "shorten the windows (--recovery-length), compute layers twice (--recovery-checkpointing), train an adapter "
    "(--recovery-train lora) or store the teacher's predictions (--recovery-top-k with --recovery-cache)"
)
"""What to do where one window of a recovery does not fit into memory."""


def collate(windows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack windows into a batch."""
    return {name: torch.stack([window[name] for window in windows]) for name in windows[0]}


class RecoveryTrainer(Trainer):  # type: ignore[misc]
    """Trains a `Student`.

    A step's loss is normalised by the tokens of the whole step, over all that it is divided into and over processes,
    so the same step gives the same gradient however it is divided. To transformers a step is one batch: how many of
    its windows run at once is decided here, and again where memory runs out.

    Args:
        student: The student.
        args: transformers' arguments; `output_dir` is the working folder, and a batch is what one process has of a
            step.
        text: The recovery text.
        windows: Its windows in the order of training.
        callbacks: What watches the training.
        average: The average of the weights, which is evaluated and saved in place of them; None for none.
        rates: Share of the learning rate of each parameter, by name; empty where all have the whole.
        weights: The student's weights, where the forward pass reads what an export will hold of them.
        micro: How many windows run at once; all of a batch by default.
        grows: Whether more may run at once where memory allows.
        on_policy: Windows that the student samples in place of some of the text's; None for none.
    """

    model: Any
    model_wrapped: Any

    def __init__(
        self,
        student: Student,
        args: TrainingArguments,
        text: RecoveryText,
        windows: TrainingWindows,
        callbacks: Sequence[Any] = (),
        weights: ExportedWeights | None = None,
        average: WeightAverage | None = None,
        rates: Mapping[str, float] | None = None,
        micro: int | None = None,
        grows: bool = False,
        on_policy: StudentText | None = None,
    ) -> None:
        super().__init__(
            model=student,
            args=args,
            data_collator=collate,
            train_dataset=windows,
            eval_dataset=windows,  # never read: `evaluate` takes the windows that are held out
            callbacks=[
                *callbacks,
                *([] if weights is None else [StepOnExact(weights)]),
                *([] if average is None else [average]),
            ],
        )
        self.text, self.average, self.rates = text, average, rates or {}
        self._weights, self.on_policy = weights, on_policy
        self._micro = MicroBatch(
            micro or args.per_device_train_batch_size,
            args.device,
            what="recovery",
            remedy=MEMORY_REMEDY,
            in_step=True,
        )
        self._grows, self._steps = grows, 0
        if on_policy is not None:
            here = self.accelerator.process_index, self.accelerator.num_processes
            on_policy.divide(args.per_device_train_batch_size, *here)
        self.remove_callback(PrinterCallback)
        # The loss is divided by the step's tokens here, so the trainer must not divide it by the batches once more.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def create_accelerator_and_postprocess(self) -> None:
        """Make accelerate's own state; fully sharded training on CPUs is switched on here, as it is on GPUs."""
        super().create_accelerator_and_postprocess()
        # Windows stay on the CPU until they run: there their numbers are looked up without waiting for a GPU.
        self.accelerator.device_placement = False
        if shard_on_cpus(self.accelerator):
            self.is_fsdp_enabled = True

    def share_weights(self) -> None:
        """Spread the student over the processes now, where they share its weights, and not only when it trains."""
        if self.is_fsdp_enabled:
            self.model = self.model_wrapped = share_student(self.accelerator, self.model)

    def exact_weights(self, *, changed: bool = True) -> AbstractContextManager[None]:
        """Hold the exact weights for a while, where the forward pass reads what an export will hold of them.

        Args:
            changed: Whether they are changed meanwhile.
        """
        return nullcontext() if self._weights is None else self._weights.exact(changed=changed)

    def stored_loss(self) -> float | None:
        """Return the held-out loss of the weights as the checkpoint stores them; None where training reads those."""
        if self._weights is None:
            return None
        with self._weights.stored():
            return self.held_out_loss()["loss"]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Take the windows in order: they were shuffled before."""
        return torch.utils.data.SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def create_optimizer(self, model: Any = None) -> Any:
        """Make the optimiser, with a learning rate for each share of it."""
        if self.optimizer is None and self.rates:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups: dict[float, list[torch.nn.Parameter]] = {}
            for name, parameter in trained_parameters(self.model if model is None else model).items():
                groups.setdefault(self.rates[name], []).append(parameter)
            # The highest first: it is what the log shows.
            self.optimizer: Any = kind(
                [
                    {"params": groups[share], "lr": share * self.args.learning_rate, "weight_decay": 0.0}
                    for share in sorted(groups, reverse=True)
                ],
                **settings,
            )
            return self.optimizer
        return super().create_optimizer(model)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Return the batches of one step, and how many tokens they predict in all processes together."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if self.on_policy is not None and batches:
            batches = self.on_policy.replace(batches, self.accelerator.unwrap_model(self.model_wrapped))
        counts = sum((count_tokens(batch["labels"]) for batch in batches), torch.zeros(2, dtype=torch.float64))
        counts = self.accelerator.reduce(counts.float().to(device), reduction="sum")
        return batches, counts

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run one step's windows forward and backward, as many at once as memory holds, and return the loss.

        Where memory runs out, the gradients of the step are dropped, and it is run again with fewer windows at once.

        Raises:
            DeviceMemoryError: One window does not fit.
        """
        self._steps += 1
        if self._grows and self._steps == 2 and not self.is_fsdp_enabled:
            # Not before: the optimiser takes its memory in the first step of this process.
            trained = trained_parameters(self.accelerator.unwrap_model(self.model_wrapped)).values()
            gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
            self._micro.let_grow(len(inputs["input_ids"]), fixed=gradients)

        def run(size: int) -> torch.Tensor:
            losses, count = [], len(inputs["input_ids"])
            for start in range(0, count, size):
                part = {name: values[start : start + size] for name, values in inputs.items()}
                # Several processes add up their gradients once, after the last part.
                with nullcontext() if start + size >= count else self.accelerator.no_sync(model):
                    losses.append(super(RecoveryTrainer, self).training_step(model, part, num_items_in_batch))
            return torch.stack(losses).sum()

        return self._micro.whole(run, undo=model.zero_grad, at_most=len(inputs["input_ids"]))

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Copy what the model reads to the device, while the device goes on; not the windows' numbers."""
        return {
            name: values if name == "window" else to_device(values, self.args.device)
            for name, values in inputs.items()
        }

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return this batch's share of the step's loss. Gradients are averaged over processes, so it is multiplied."""
        sums: torch.Tensor = model(**inputs, counts=num_items_in_batch)
        processes: int = self.accelerator.num_processes
        return sums[0] * processes

    @torch.no_grad()
    def held_out_loss(self) -> dict[str, float]:
        """Return the loss on the windows that are held out: the total as `loss`, each term and each exit by its name.

        They are divided between processes, unless the model itself is: then all have to run in step. No random number
        is drawn.
        """
        student: Any = self.accelerator.unwrap_model(self.model_wrapped)
        student = student if isinstance(student, Student) else self.model
        student.eval()
        device = self.args.device
        first = self.text.trained
        numbers = torch.arange(first, len(self.text.input_ids))
        counts = count_tokens(self.text.labels[first:])
        sums = torch.zeros(len(student.names), device=device)
        runs = self.model_wrapped if self.is_fsdp_enabled else student
        shares = 1 if self.is_fsdp_enabled else self.accelerator.num_processes
        with nullcontext() if self.average is None else self.average.in_place():
            mine = numbers[self.accelerator.process_index % shares :: shares]

            def run(part: slice) -> torch.Tensor:
                ids, labels = (to_device(each[mine[part]], device) for each in (self.text.input_ids, self.text.labels))
                found: torch.Tensor = runs(ids, labels, mine[part], counts)
                return found

            for found in self._micro.each(len(mine), run):
                sums += found
        if self.is_fsdp_enabled:
            gather_no_more(runs)
        if shares > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        return dict(zip(student.names, sums.tolist(), strict=True))

    def raise_not_finite(self, losses: Mapping[str, float]) -> NoReturn:
        """Say why the held-out loss is not finite before the first step.

        Args:
            losses: What `held_out_loss` returned.

        Raises:
            NotFiniteError: Always; the message names the module where the model itself is the cause.
        """
        student: Any = self.accelerator.unwrap_model(self.model_wrapped)
        ids, name, text = self.text.input_ids, "the model to recover", "the held-out recovery text"
        if not self.is_fsdp_enabled:  # its parts are in other processes
            for row in range(self.text.trained, len(ids)):
                if (error := not_finite(student.model, ids[row : row + 1], name, text)) is not None:
                    raise error
        values = ", ".join(f"{name} {value}" for name, value in losses.items() if not math.isfinite(value))
        raise NotFiniteError(
            f"the loss on {text} is not finite before the first step ({values}); try dtype='float32', another teacher "
            "or another loss"
        )

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Measure the held-out loss, log it and tell the callbacks.

        Raises:
            TrainingError: It is NaN or infinite; the last checkpoint remains.
        """
        found = self.held_out_loss()
        if not math.isfinite(found["loss"]):
            raise TrainingError(
                f"the held-out loss became NaN or infinite after step {self.state.global_step}; "
                "try a lower --recovery-learning-rate or --dtype float32"
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Save weights, optimiser, schedule, random state and position; the checkpoint appears whole or not at all.

        Only what is trained is saved: the rest is in the checkpoint that the run started from.

        Raises:
            OutputError: There is no room; the last whole checkpoint remains.
        """
        folder = Path(self.args.output_dir)
        name = f"{PREFIX}{self.state.global_step}"
        partial = folder / f"{name}.partial"
        saved = last_step(folder)
        resume = "" if saved is None else f": it resumes from step {saved}"
        with disk_errors(folder / name, resume):
            try:
                self._fill_checkpoint(partial)
            except BaseException as error:
                if self.args.should_save:
                    shutil.rmtree(partial, ignore_errors=True)
                # What torch.save makes of a full disk, at different places of the file.
                if isinstance(error, RuntimeError) and any(
                    word in str(error) for word in ("writ", "iostream", "inline_container")
                ):
                    raise OSError(28, str(error)) from None
                raise
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(folder / f"{PREFIX}{self.state.best_global_step}")
        if self.args.should_save:
            with disk_errors(folder / name, resume):
                write_whole(partial / STATE, self._state_json().encode())
                rename_folder(partial, folder / name)
            best = self.state.best_model_checkpoint
            drop_old_checkpoints(folder, Path(best) if best else None)
        self.accelerator.wait_for_everyone()

    def _fill_checkpoint(self, partial: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        with self.exact_weights(changed=False):
            trained = whole_tensors(trained_parameters(self.accelerator.unwrap_model(self.model_wrapped)))
            if self.args.should_save:
                save_tensors(partial / WEIGHTS, trained)
                if self.average is not None:
                    save_tensors(partial / AVERAGE, self.average.values)
        if self.on_policy is not None:
            save_tensors(partial / self._sampled_name, self.on_policy.state)
        self._save_optimizer_and_scheduler(str(partial))
        self._save_scaler(str(partial))
        self._save_rng_state(str(partial))

    def _state_json(self) -> str:
        """Return the trainer's state as its own class writes it, with the state of the callbacks."""
        for callback in [*self.callback_handler.callbacks, self.control]:
            if callable(getattr(callback, "state", None)):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        scratch = Path(self.args.output_dir) / f".{STATE}"
        self.state.save_to_json(str(scratch))
        text = scratch.read_text(encoding="utf-8")
        scratch.unlink()
        return text

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._set_trained(load_tensors(folder / WEIGHTS))
        if self.average is not None:
            self.average.resume(load_tensors(folder / AVERAGE))
        if self.on_policy is not None:
            self.on_policy.resume(load_tensors(folder / self._sampled_name))

    @property
    def _sampled_name(self) -> str:
        """The file of what the student has sampled in this process."""
        return f"sampled-{self.accelerator.process_index}.safetensors"

    def _set_trained(self, stored: Mapping[str, torch.Tensor]) -> None:
        with self.exact_weights():
            set_tensors(trained_parameters(self.accelerator.unwrap_model(self.model_wrapped)), stored)

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        self._set_trained(load_tensors(best / (WEIGHTS if self.average is None else AVERAGE)))
