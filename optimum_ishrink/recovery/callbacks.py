"""What watches the training: the progress bar, the last step, losses that are NaN or inf, and signals to stop."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import TrainerCallback

from ..core.progress import training_bar
from ..errors import TrainingError
from .trainable import trained_parameters
from .work_folder import last_step


def found_in_any(found: bool, device: torch.device) -> bool:
    """Whether something was found in this process, or in any of those that share the run."""
    if not torch.distributed.is_initialized():
        return found
    flag = torch.tensor(float(found), device=device)
    torch.distributed.all_reduce(flag)
    return bool(flag > 0)


class ShowProgress(TrainerCallback):  # type: ignore[misc]
    """A bar with the loss, the held-out loss and the time left."""

    def __init__(self) -> None:
        self._bar: AbstractContextManager[Any] | None = None
        self._update: Any = None
        self._loss = self._held_out = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar where the run begins or resumes."""
        self._bar = training_bar("recovery", state.max_steps, state.global_step)
        self._update = self._bar.__enter__()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show what was logged."""
        logs = logs or {}
        if "loss" in logs:
            self._loss = f"loss {logs['loss']:.4f}"
        if "eval_loss" in logs:
            self._held_out = f", held out {logs['eval_loss']:.4f}"
        if self._update is not None:
            self._update(state.global_step, self._loss + self._held_out)

    def close(self) -> None:
        """Close the bar, however the run ended."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = self._update = None


class FinishWhole(TrainerCallback):  # type: ignore[misc]
    """Evaluates and saves at the last step, whatever the interval."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Request both at the last step."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        return control


class StopOnNaN(TrainerCallback):  # type: ignore[misc]
    """Stops before a step with a NaN or inf loss or gradient: the weights are then still the last good ones.

    A NaN or inf loss has such gradients, and so has a step whose gradients alone overflow.
    """

    def __init__(self, folder: Any) -> None:
        self._folder = folder

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Look at all gradients.

        Raises:
            TrainingError: One is NaN or inf, in this process or, where gradients are spread over several, in another.
        """
        gradients = [p.grad for p in trained_parameters(model).values() if p.grad is not None]
        local = [gradient.to_local() if hasattr(gradient, "to_local") else gradient for gradient in gradients]
        # One number for all of them: on a GPU, asking each would wait for it as many times as there are tensors.
        norm = torch.nn.utils.get_total_norm(local)
        if found_in_any(not bool(norm.isfinite()), args.device):
            saved = last_step(self._folder)
            checkpoint = "there is no checkpoint yet" if saved is None else f"the checkpoint of step {saved} is"
            raise TrainingError(
                f"the loss became NaN or infinite at step {state.global_step + 1}; {checkpoint} in {self._folder}; "
                "try a lower --recovery-learning-rate or --dtype float32"
            )


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """On SIGTERM, saves after the step that is running and stops."""

    def __init__(self) -> None:
        self.stopped = False
        self._before: Any = None

    def _note(self, *_: Any) -> None:
        self.stopped = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Handle the signal, where Python lets a thread do so."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Save and stop when the signal has come, to any of several processes: they have to stop at one step."""
        self.stopped = found_in_any(self.stopped, args.device)
        if self.stopped:
            control.should_save = control.should_training_stop = True
        return control

    def close(self) -> None:
        """Restore the handler from before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        self._before = None
