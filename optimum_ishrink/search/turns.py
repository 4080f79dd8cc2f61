"""Files that take turns on a runtime. Imports the standard library alone (see `on_device`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..edge.worker_process import MARGIN, PROCESS_BYTES, Process, Start
from ..planning.limits import DECODE, MEMORY, TTFT

_HEADROOM = 2.2
"""Memory of a file's weights in bytes of the file: llama.cpp may hold them in a second layout."""


Turns = Mapping[str, Sequence[Mapping[str, float]]]
"""For each file the figures of each of its turns."""


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Args:
        prompt: Tokens of the prompt.
        new_tokens: Tokens that are decoded after it.
        context: Tokens that the KV cache has room for.
    """

    prompt: int = 128
    new_tokens: int = 32
    context: int = 2048


def fit_together(files: Mapping[str, Path], available: int | None) -> bool:
    """Whether all files fit in memory at once, so that each can keep its process.

    Args:
        files: The files by name.
        available: Bytes that are free; None where that is not known, and then they are not expected to fit.
    """
    needed = sum(_HEADROOM * path.stat().st_size + PROCESS_BYTES for path in files.values())
    return available is not None and needed <= available


def take_turns(
    files: Mapping[str, Path],
    workload: Workload,
    *,
    threads: int,
    vocabulary: int,
    rounds: int,
    together: bool,
    start: Start,
    advance: Callable[[int], None],
) -> tuple[dict[str, list[dict[str, float]]], str]:
    """Time files in turn, in the opposite order in every second round.

    Args:
        files: The files by name.
        workload: What is timed.
        threads: Threads for llama.cpp.
        vocabulary: Tokens that the prompt is drawn from; all files have so many.
        rounds: Turns of each file.
        together: Whether each file keeps one process; otherwise each turn has its own.
        start: Starts a process.
        advance: Told of every turn.

    Returns:
        For each file the figures of each turn: tokens per second, seconds to the first token, and peak memory in bytes
        without what the process held before loading (missing where the system does not report it); and the version of
        llama.cpp. With one thread, times are those that the process computed, where the runtime reports them: they
        are what the clock says on a machine that does nothing else. Threads that wait for one another compute as well.

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
    found: dict[str, list[dict[str, float]]] = {name: [] for name in files}
    build = ""
    with ExitStack() as stack:
        alive: dict[str, Process] = {}
        for number in range(rounds):
            for name in list(files)[:: -1 if number % 2 else 1]:
                with ExitStack() as turn:
                    if name not in alive:
                        keeps = stack if together else turn
                        process = keeps.enter_context(start({**request, "model": str(files[name])}))
                        if together:
                            alive[name] = process
                    else:
                        process = alive[name]
                    found[name].append(_figures(process.ask({"length": workload.prompt}), process.first, threads))
                    build = process.first["build"]
                advance(1)
    return found, build


def _figures(answer: Mapping[str, Any], first: Mapping[str, Any], threads: int) -> dict[str, float]:
    times = answer.get("processor", answer) if threads == 1 else answer
    found = {DECODE: times["decode"], TTFT: times["first"]}
    before, peak = first.get("memory_before_bytes"), answer["peak_memory_bytes"]
    if before is not None and peak is not None and peak > before:
        found[MEMORY] = float(peak - before)
    return found


def settle(turns: Turns) -> dict[str, dict[str, float]]:
    """Return each file's figures: the lower quartile of its times, and its median memory.

    What disturbs a turn makes it slower, never faster.

    Args:
        turns: The figures of each turn.
    """
    return {
        name: {
            DECODE: _quartile([each[DECODE] for each in of], fastest_first=True),
            TTFT: _quartile([each[TTFT] for each in of]),
            **({MEMORY: median(each[MEMORY] for each in of)} if all(MEMORY in each for each in of) else {}),
        }
        for name, of in turns.items()
    }


def _quartile(values: Sequence[float], *, fastest_first: bool = False) -> float:
    return sorted(values, reverse=fastest_first)[(len(values) - 1) // 4]
