"""Held-out losses that a recovery reports besides those of its evaluations: before the first step, and at exits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.durable import write_whole
from .trainer import RecoveryTrainer

BEFORE, SOLVED = "before.json", "solved.json"
"""Files of the losses before the first step, and after weights were re-fit."""


def exit_losses(
    exits: Sequence[int], before: Mapping[str, float], history: Sequence[Mapping[str, float]]
) -> tuple[tuple[int, float, float], ...] | None:
    """Return the held-out loss at each early exit, before and at the best step; None without exits.

    Args:
        exits: Numbers of layers after which the head is trained.
        before: The held-out losses before the first step.
        history: What the trainer logged.
    """
    if not exits:
        return None
    best = min((entry for entry in history if "eval_loss" in entry), key=lambda entry: entry["eval_loss"])
    return tuple((count, before[f"exit_{count}"], best[f"eval_exit_{count}"]) for count in exits)


def known_losses(trainer: RecoveryTrainer, path: Path) -> dict[str, float]:
    """Return the held-out losses before the first step; a resumed run reads what was measured then.

    Args:
        trainer: The trainer, before its first step.
        path: The file that stores them.

    Raises:
        NotFiniteError: One is NaN or infinite.
    """
    if path.is_file():
        found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        trainer.accelerator.wait_for_everyone()
        return found
    found = trainer.held_out_loss()
    if not all(map(math.isfinite, found.values())):
        trainer.raise_not_finite(found)
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        write_whole(path, json.dumps(found).encode())
    return found
