"""Timing models in turn on this machine: fresh processes, each model once in every round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.progress import progress_bar
from ..edge.worker_process import Start
from .turns import ReadTurn, settle, take_turns

Figures = dict[str, dict[str, float]]
"""Tokens per second, seconds to the first token and bytes of memory, by the model's name."""


def time_in_turn(
    requests: Mapping[str, Mapping[str, Any]],
    prompt: int,
    *,
    rounds: int,
    together: bool,
    start: Start,
    figures: ReadTurn,
) -> tuple[Figures, str]:
    """Time models in turn (see `take_turns`), and show how far it is.

    Args:
        requests: What each model's process is asked first, by the model's name.
        prompt: Tokens of the timed prompt.
        rounds: Turns of each model.
        together: Whether each model keeps one process; otherwise each turn has its own.
        start: Starts a process.
        figures: Returns a turn's figures by what its process answered first, and in this turn.

    Returns:
        For each model its figures (see `settle`), without what the system does not report; and the version of the
        runtime.

    Raises:
        SourceError: A process cannot run its model.
    """
    with progress_bar("timing in turn", rounds * len(requests)) as advance:
        turns, build = take_turns(
            requests, prompt, rounds=rounds, together=together, start=start, figures=figures, advance=advance
        )
    return settle(turns), build
