"""Models that take turns on a runtime. Imports the standard library alone (see `on_device`)."""

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
"""For each model the figures of each of its turns."""

ReadTurn = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, float]]
"""Returns a turn's figures by what its process answered first, and in this turn."""


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
    requests: Mapping[str, Mapping[str, Any]],
    prompt: int,
    *,
    rounds: int,
    together: bool,
    start: Start,
    figures: ReadTurn,
    advance: Callable[[int], None],
) -> tuple[dict[str, list[dict[str, float]]], str]:
    """Time models in turn, in the opposite order in every second round.

    Args:
        requests: What each model's process is asked first, by the model's name.
        prompt: Tokens of the timed prompt.
        rounds: Turns of each model.
        together: Whether each model keeps one process; otherwise each turn has its own.
        start: Starts a process.
        figures: Returns a turn's figures by what its process answered first, and in this turn.
        advance: Told of every turn.

    Returns:
        For each model the figures of each turn; and the version of the runtime.

    Raises:
        SourceError: A process cannot run its model.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in requests}
    build = ""
    with ExitStack() as stack:
        alive: dict[str, Process] = {}
        for number in range(rounds):
            for name in list(requests)[:: -1 if number % 2 else 1]:
                with ExitStack() as turn:
                    if name not in alive:
                        process = (stack if together else turn).enter_context(start(requests[name]))
                        if together:
                            alive[name] = process
                    else:
                        process = alive[name]
                    found[name].append(figures(process.first, process.ask({"length": prompt})))
                    build = process.first["build"]
                advance(1)
    return found, build


def llama_cpp_requests(
    files: Mapping[str, Path], workload: Workload, *, threads: int, vocabulary: int
) -> dict[str, dict[str, Any]]:
    """Return what processes of llama.cpp are asked (see `edge.worker.measure`).

    Args:
        files: The files by name.
        workload: What is timed.
        threads: Threads for llama.cpp.
        vocabulary: Tokens that the prompt is drawn from; all files have so many.
    """
    request = {
        "task": "measure",
        "threads": threads,
        "lengths": [workload.prompt],
        "new_tokens": workload.new_tokens,
        "vocabulary": vocabulary,
        "context": max(workload.context, workload.prompt + workload.new_tokens + MARGIN),
    }
    return {name: {**request, "model": str(path)} for name, path in files.items()}


def llama_cpp_figures(threads: int) -> ReadTurn:
    """Return what reads the figures of a turn of llama.cpp.

    They are tokens per second, seconds to the first token, and peak memory in bytes without what the process held
    before loading (missing where the system does not report it). With one thread, times are those that the process
    computed, where the runtime reports them: they are what the clock says on a machine that does nothing else. Threads
    that wait for one another compute as well.

    Args:
        threads: Threads for llama.cpp.
    """

    def figures(first: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, float]:
        times = answer.get("processor", answer) if threads == 1 else answer
        found = {DECODE: times["decode"], TTFT: times["first"]}
        before, peak = first.get("memory_before_bytes"), answer["peak_memory_bytes"]
        if before is not None and peak is not None and peak > before:
            found[MEMORY] = float(peak - before)
        return found

    return figures


def settle(turns: Turns) -> dict[str, dict[str, float]]:
    """Return each model's figures: the lower quartile of its times, and its median memory.

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
