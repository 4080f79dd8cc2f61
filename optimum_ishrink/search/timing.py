"""Timing GGUF files in llama.cpp, in turn: fresh processes, each file once in every round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from ..core.progress import progress_bar
from ..edge.benchmark import MARGIN, PROCESS_BYTES, Process
from ..edge.worker_process import WorkerProcess
from ..planning.limits import DECODE, MEMORY, TTFT
from .cost_model import Workload

Start = Callable[[Mapping[str, Any]], AbstractContextManager[Process]]

_HEADROOM = 2.2
"""Memory of a file's weights in bytes of the file: llama.cpp may hold them in a second layout."""


def time_files(
    files: Mapping[str, Path],
    workload: Workload,
    *,
    threads: int,
    vocabulary: int,
    rounds: int,
    start: Start = WorkerProcess,
) -> tuple[dict[str, dict[str, float]], str]:
    """Time files in turn, in the opposite order in every second round.

    Where all fit in memory together, each has one process; otherwise each turn has its own.

    Args:
        files: The files by name.
        workload: What is timed.
        threads: Threads for llama.cpp.
        vocabulary: Tokens that the prompt is drawn from; all files have so many.
        rounds: Turns of each file.
        start: Starts a process.

    Returns:
        For each file the medians of tokens per second and seconds to the first token, and its peak memory in bytes
        without what the process held before loading (missing where the system does not report it); and the version of
        llama.cpp.

    Raises:
        SourceError: llama.cpp cannot run a file.
    """
    request = {
        "task": "measure",
        "threads": threads,
        "lengths": [workload.prompt],
        "new_tokens": workload.new_tokens,
        "vocabulary": vocabulary,
        "context": max(workload.context, workload.prompt + workload.new_tokens + MARGIN),
    }
    samples: dict[str, dict[str, list[float]]] = {name: {DECODE: [], TTFT: [], MEMORY: []} for name in files}
    needed = sum(_HEADROOM * path.stat().st_size + PROCESS_BYTES for path in files.values())
    together = needed <= psutil.virtual_memory().available
    build = ""
    with ExitStack() as stack, progress_bar("timing in turn", rounds * len(files)) as advance:
        alive: dict[str, Process] = {}
        for number in range(rounds):
            for name in list(files)[:: -1 if number % 2 else 1]:
                with ExitStack() as turn:
                    if name not in alive:
                        keeps = stack if together else turn
                        process = keeps.enter_context(start({**request, "model": str(files[name])}))
                        build = process.first["build"]
                        if together:
                            alive[name] = process
                    else:
                        process = alive[name]
                    _add(samples[name], process.ask({"length": workload.prompt}), process.first)
                advance(1)
    return {
        name: {metric: median(found) for metric, found in of.items() if found} for name, of in samples.items()
    }, build


def _add(samples: dict[str, list[float]], found: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    samples[DECODE].append(found["decode"])
    samples[TTFT].append(found["first"])
    before, peak = first.get("memory_before_bytes"), found["peak_memory_bytes"]
    if before is not None and peak is not None:
        samples[MEMORY].append(float(peak - before))
