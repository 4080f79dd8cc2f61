"""llama.cpp in a fresh process: `python -m optimum_ishrink.edge.worker`, JSON lines in and out.

The first line on standard input names the task. Each further line gets one answer, and the process ends with its
input.

torch is not imported here, so that peak memory is that of llama.cpp and Python alone. The process exits without
closing the server: xllamacpp sometimes hangs when a server is closed before its loop runs.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import IShrinkError


def measure(request: dict[str, Any], turns: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Load a GGUF file, and time a prompt in every turn.

    A first request of 16 tokens does not count: it reads the weights' pages and triggers allocations that happen once.

    Args:
        request: `model`, `threads`, `lengths`, `new_tokens`, `vocabulary`, `context`; no lengths to load only.
        turns: For each turn the `length` of its prompt in tokens, one of `lengths`.

    Yields:
        First `load_seconds`, `build`, and `memory_before_bytes`, the most that the process held before it loaded the
        file. Then for each turn `first` (seconds to the first token), `decode` (tokens per second after it),
        `peak_memory_bytes` so far, and under `processor` the first two by the time that the process computed, in which
        other processes on the machine do not count. Memory is None where the system does not report it.
    """
    from .llama_server import LlamaServer, build_name, check_runtime

    check_runtime()
    import xllamacpp  # noqa: F401 - the library is not part of what the file takes

    lengths, new_tokens = request["lengths"], request["new_tokens"]
    longest = max([*lengths, 16])
    before = peak_memory()
    server = LlamaServer(Path(request["model"]), threads=request["threads"], context=request["context"])
    draw = random.Random(0)
    prompt = [draw.randrange(request["vocabulary"]) for _ in range(longest)]
    if lengths:
        server.complete(prompt[:16], 4, reuse=False)
    yield {"load_seconds": server.load_seconds, "build": build_name(), "memory_before_bytes": before}
    for turn in turns:
        tokens = prompt[: turn["length"]]
        start = time.process_time()
        first = server.complete(tokens, 1, reuse=False).seconds
        middle = time.process_time()
        # The prompt stays in the KV cache, so only its last token is computed again before decoding.
        answer = server.complete(tokens, 1 + new_tokens, reuse=True)
        processor = {"first": middle - start, "decode": (1 + answer.decoded) / (time.process_time() - middle)}
        decode = answer.decoded / answer.decode_seconds
        yield {"first": first, "decode": decode, "processor": processor, "peak_memory_bytes": peak_memory()}


def predict(request: dict[str, Any], turns: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return next-token probabilities at the last positions of token windows, and how lines are split into tokens.

    Args:
        request: `model`, `threads`, `windows` (lists of token ids), `predicted` (positions at the end of each),
            `candidates` (number of most likely tokens to return), `lines` (text).
        turns: Not read.

    Yields:
        `top`: for every window and position its (token, log-probability) pairs; `lines`: token ids of each line.
    """
    from .llama_server import LlamaServer

    windows, predicted = request["windows"], request["predicted"]
    longest = max(len(window) for window in windows)
    server = LlamaServer(Path(request["model"]), threads=request["threads"], context=longest + 8)
    top = [
        [
            server.next_log_probabilities(window[: len(window) - predicted + i + 1], request["candidates"])
            for i in range(predicted)
        ]
        for window in windows
    ]
    yield {"top": top, "lines": [server.tokenize(line) for line in request["lines"]]}


def speculate(request: dict[str, Any], turns: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Load a GGUF file, with one that drafts for it or without, and write after a prompt in every turn.

    A first request does not count, as in `measure`.

    Args:
        request: `model`, `threads`, `context`; and where another file drafts `draft`, `draft_tokens` and
            `draft_threshold`.
        turns: For each turn the `prompt` (token ids), the `count` of tokens to write, at most, and `reuse` where
            the KV cache of the last turn serves this one.

    Yields:
        First `build`. Then for each turn what `LlamaServer.write` returns.
    """
    from .llama_server import LlamaServer, build_name

    more: dict[str, Any] = {}
    if request.get("draft"):
        more = {name: request[name] for name in ("draft_tokens", "draft_threshold")}
        more["draft"] = Path(request["draft"])
    server = LlamaServer(Path(request["model"]), threads=request["threads"], context=request["context"], **more)
    server.complete([0] * 16, 4, reuse=False)
    yield {"build": build_name()}
    for turn in turns:
        yield asdict(server.write(turn["prompt"], turn["count"], reuse=turn.get("reuse", False)))


def peak_memory() -> int | None:
    """Return this process's peak resident memory in bytes; None where the system does not report it."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
    if sys.platform == "darwin":
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return None


Task = Callable[[dict[str, Any], Iterable[dict[str, Any]]], Iterator[dict[str, Any]]]

TASKS: dict[str, Task] = {"measure": measure, "predict": predict, "speculate": speculate}


def serve(tasks: Mapping[str, Task]) -> None:
    """Answer line by line, then exit; the answer `{"error": reason}` is the last, with exit status 1.

    Args:
        tasks: The tasks by name.
    """
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not look like an answer
    lines = map(json.loads, sys.stdin)
    request = next(lines)
    status = 0
    try:
        for answer in tasks[request["task"]](request, lines):
            output.write(json.dumps(answer) + "\n")
            output.flush()
    except IShrinkError as error:  # as an answer: threads of a runtime may write into any line of standard error
        output.write(json.dumps({"error": str(error)}) + "\n")
        output.flush()
        status = 1
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(TASKS)
