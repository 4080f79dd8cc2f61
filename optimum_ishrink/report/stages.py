"""The stages of a schedule, as the report lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..core.json_codec import rare_entry
from .recovery import RecoveryRecord


@dataclass(frozen=True)
class StageRecord:
    """One stage of a schedule.

    Args:
        name: What it did: `width`, `depth`, `heads`, `experts`, `vocabulary`, `cut` or `recover`.
        shape: The complete shape after it.
        num_parameters: Parameters after it.
        recovery: What it trained; None where it cut.
    """

    name: str
    shape: Mapping[str, int]
    num_parameters: int
    recovery: RecoveryRecord | None = rare_entry()  # noqa: RUF009 - a field


STAGES_HEADER = ("stage", "what it did", "parameters", "loss on held-out windows")


def stage_rows(stages: Sequence[StageRecord], before: Mapping[str, int]) -> list[tuple[str, str, str, str]]:
    """Return the rows of the table of stages.

    Args:
        stages: The stages, in order.
        before: The shape of the unpruned model.
    """
    rows, current = [], dict(before)
    for number, stage in enumerate(stages, start=1):
        found, loss = stage.recovery, ""
        if found is None:
            changed = [key for key in stage.shape if stage.shape[key] != current.get(key)]
            what = ", ".join(f"{key} {current.get(key)} -> {stage.shape[key]}" for key in changed)
        else:
            what = f"{found.loss} on {found.tokens:,} tokens"
            loss = f"{found.held_out_loss_before:.4f} -> {found.held_out_loss:.4f}"
            loss += "" if found.helped else " (weights left as they were)"
        rows.append((f"{number}. {stage.name}", what, f"{stage.num_parameters:,}", loss))
        current = dict(stage.shape)
    return rows
