"""What recovery did to a cut checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.json_codec import rare_entry
from .measurement import Measurement


@dataclass(frozen=True, kw_only=True)
class RecoveryRecord:
    """What recovery did: how it trained, on which text, and with what result.

    Args:
        loss: The loss, as requested.
        trained: What was trained: `lora`, `full` or names of parts.
        trained_parameters: Parameters that were trained.
        learning_rate: The highest learning rate.
        steps: Steps that were run.
        planned_steps: Steps that were planned; training ends earlier when the held-out loss stops falling.
        best_step: The step with the lowest held-out loss; 0 when no step improved on the initial weights.
        tokens: Tokens that were trained on.
        held_out_windows: Windows that the held-out loss is averaged over.
        held_out_loss_before: The held-out loss before recovery.
        held_out_loss_solved: The held-out loss after the re-fit by ridge regression; None without one.
        held_out_loss: The lowest held-out loss.
        held_out_losses: (step, held-out loss) of every evaluation.
        seconds: Duration of the training since it last started.
        tokens_per_second: Tokens trained on per second in that time.
        resumed_from_step: The step that the training resumed from; None when it was not interrupted.
        processes: Processes that shared the training.
        helped: Whether the held-out loss fell, so that the weights were changed.
        data: Names of the texts.
        fingerprints: Fingerprints of the texts; None for a text that is not a file.
        teacher: Name of the teacher; None when it was the unpruned model, or when there was none.
        adapter_base: Hub id that the saved adapter names as its base; None when none was saved.
        before: Divergence and agreement of the checkpoint before recovery, on the evaluation texts.
        begins_with: The tokens that every window begins with; None where the tokenizer adds none to a text.
        layer_decay: Each layer's learning rate as a share of that of the next; None where all were alike.
        ema: What a step retained of the average of the weights that was saved; None where the weights were.
        on_policy: Share of the training windows that the model itself sampled; None where the text was given.
        recovery_for: Name of the quantisation that was trained for, whose held-out losses the others are; None where
            the checkpoint's own weights were trained.
        types: With `mixed`, the types of matrices by their names in the file.
        rounding: How weights were rounded before the first step, `calibrated` or `nearest`; None where they were not.
        held_out_loss_stored: The held-out loss of the trained weights before they are quantised; None where training
            changed none.
        operations_per_token: Floating-point operations that training takes for one token, the teacher's included; None
            where the device was not measured.
        device_peak: Those of plain products of matrices in the compute dtype, per second, on one device; None where
            it was not measured, because the training took less than ten seconds.
        peak_share: What the training reached of that; None where it was not measured.
        early_exits: For each early exit that was trained: the layers before it, and the held-out loss there before
            recovery and at the best step. None where none was.
    """

    loss: str
    trained: str
    trained_parameters: int
    learning_rate: float
    steps: int
    planned_steps: int
    best_step: int
    tokens: int
    held_out_windows: int
    held_out_loss_before: float
    held_out_loss_solved: float | None = None
    held_out_loss: float
    held_out_losses: tuple[tuple[int, float], ...]
    seconds: float
    tokens_per_second: float
    resumed_from_step: int | None
    processes: int
    helped: bool = True
    data: tuple[str, ...] = ()
    fingerprints: tuple[str | None, ...] = ()
    teacher: str | None = None
    adapter_base: str | None = None
    before: tuple[Measurement, ...] = ()
    begins_with: str | None = rare_entry()
    layer_decay: float | None = rare_entry()
    ema: float | None = rare_entry()
    on_policy: float | None = rare_entry()
    recovery_for: str | None = rare_entry()
    types: Mapping[str, str] | None = rare_entry()
    rounding: str | None = rare_entry()
    held_out_loss_stored: float | None = rare_entry()
    early_exits: tuple[tuple[int, float, float], ...] | None = rare_entry()
    operations_per_token: float | None = rare_entry()
    device_peak: float | None = rare_entry()
    peak_share: float | None = rare_entry()
