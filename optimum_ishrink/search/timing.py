"""Timing GGUF files in llama.cpp, in turn: fresh processes, each file once in every round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

from ..core.progress import progress_bar
from ..edge.worker_process import Start, WorkerProcess
from .turns import Workload, fit_together, settle, take_turns


def time_files(
    files: Mapping[str, Path],
    workload: Workload,
    *,
    threads: int,
    vocabulary: int,
    rounds: int,
    start: Start = WorkerProcess,
) -> tuple[dict[str, dict[str, float]], str]:
    """Time files in turn (see `take_turns`).

    Where all fit in memory together, each has one process; otherwise each turn has its own.

    Args:
        files: The files by name.
        workload: What is timed.
        threads: Threads for llama.cpp.
        vocabulary: Tokens that the prompt is drawn from; all files have so many.
        rounds: Turns of each file.
        start: Starts a process.

    Returns:
        For each file tokens per second, seconds to the first token, and its peak memory in bytes without what the
        process held before loading (missing where the system does not report it); and the version of llama.cpp.

    Raises:
        SourceError: llama.cpp cannot run a file.
    """
    with progress_bar("timing in turn", rounds * len(files)) as advance:
        turns, build = take_turns(
            files,
            workload,
            threads=threads,
            vocabulary=vocabulary,
            rounds=rounds,
            together=fit_together(files, psutil.virtual_memory().available),
            start=start,
            advance=advance,
        )
    return settle(turns), build
