"""llama.cpp in a fresh process: `python -m optimum_ishrink.edge.worker`, JSON lines in and out again.

The first line on standard input says what to do; what a line more asks for is answered when it comes, and where the
input ends, so does the process.

Nothing of torch is imported here, so that the peak of memory is llama.cpp's and Python's own. The process leaves
without closing the server: xllamacpp waits for ever, now and then, when one is closed before its loop runs.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import IShrinkError


def measure(request: dict[str, Any], turns: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Load a GGUF file, and time a prompt in every turn that is asked for.

    A first request of 16 tokens does not count: it touches the weights' pages and allocates what is allocated once.

    Args:
        request: `model`, `threads`, `lengths`, `new_tokens`, `vocabulary`, `context`; no lengths to load only.
        turns: For each turn the `length` of its prompt, one of the lengths.

    Yields:
        First `load_seconds` and `build`. Then for each turn `first` (seconds to the first token), `decode` (tokens per
        second behind it) and `peak_memory_bytes` so far (None where the system does not tell).
    """
    from .runtime import Runtime, build_name

    lengths, new_tokens = request["lengths"], request["new_tokens"]
    longest = max([*lengths, 16])
    runtime = Runtime(Path(request["model"]), threads=request["threads"], context=request["context"])
    draw = random.Random(0)
    prompt = [draw.randrange(request["vocabulary"]) for _ in range(longest)]
    if lengths:
        runtime.complete(prompt[:16], 4, reuse=False)
    yield {"load_seconds": runtime.load_seconds, "build": build_name()}
    for turn in turns:
        asked = prompt[: turn["length"]]
        first = runtime.complete(asked, 1, reuse=False).seconds
        # The prompt stays in the cache, so that only its last token is read again before decoding.
        answer = runtime.complete(asked, 1 + new_tokens, reuse=True)
        decode = answer.decoded / answer.decode_seconds
        yield {"first": first, "decode": decode, "peak_memory_bytes": peak_memory()}


def predict(request: dict[str, Any], turns: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Say what comes next at the last positions of token windows, and how lines are split into tokens.

    Args:
        request: `model`, `threads`, `windows` (lists of token ids), `predicted` (positions at the end of each),
            `candidates` (likeliest tokens to name), `lines` (text).
        turns: None are answered.

    Yields:
        `top`: for every window and position its (token, log-probability) pairs; `lines`: token ids of each line.
    """
    from .runtime import Runtime

    windows, predicted = request["windows"], request["predicted"]
    longest = max(len(window) for window in windows)
    runtime = Runtime(Path(request["model"]), threads=request["threads"], context=longest + 8)
    top = [
        [
            runtime.next_log_probabilities(window[: len(window) - predicted + i + 1], request["candidates"])
            for i in range(predicted)
        ]
        for window in windows
    ]
    yield {"top": top, "lines": [runtime.tokenize(line) for line in request["lines"]]}


def peak_memory() -> int | None:
    """Return the most memory that this process ever had resident, in bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
    if sys.platform == "darwin":
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return None


Task = Callable[[dict[str, Any], Iterable[dict[str, Any]]], Iterator[dict[str, Any]]]

TASKS: dict[str, Task] = {"measure": measure, "predict": predict}


def main() -> None:
    """Answer line by line, and leave."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    lines = map(json.loads, sys.stdin)
    request = next(lines)
    status = 0
    try:
        for answer in TASKS[request["task"]](request, lines):
            output.write(json.dumps(answer) + "\n")
            output.flush()
    except IShrinkError as error:
        sys.stderr.write(f"error: {error}\n")
        status = 1
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
