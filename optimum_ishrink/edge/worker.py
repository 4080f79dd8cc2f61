"""llama.cpp in a fresh process: `python -m optimum_ishrink.edge.worker`, JSON in on standard input and out again.

Nothing of torch is imported here, so that the peak of memory is llama.cpp's and Python's own. The process leaves
without closing the server: xllamacpp waits for ever, now and then, when one is closed before its loop runs.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from ..errors import IShrinkError


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Load a GGUF file, and time it at several prompt lengths.

    A first request of 16 tokens does not count: it touches the weights' pages and allocates what is allocated once.

    Args:
        request: `model`, `threads`, `lengths`, `new_tokens`, `vocabulary`, `context`; no lengths to load only.

    Returns:
        `load_seconds`, `build`, `peak_memory_bytes` (None where the system does not tell), and by length `first`
        (seconds to the first token) and `decode` (tokens per second behind it).
    """
    from .runtime import Runtime, build_name

    lengths, new_tokens = request["lengths"], request["new_tokens"]
    longest = max([*lengths, 16])
    runtime = Runtime(Path(request["model"]), threads=request["threads"], context=request["context"])
    found: dict[str, Any] = {"load_seconds": runtime.load_seconds, "build": build_name(), "first": {}, "decode": {}}
    if lengths:
        draw = random.Random(0)
        prompt = [draw.randrange(request["vocabulary"]) for _ in range(longest)]
        runtime.complete(prompt[:16], 4, reuse=False)
        for length in lengths:
            found["first"][str(length)] = runtime.complete(prompt[:length], 1, reuse=False).seconds
            # The prompt stays in the cache, so that only its last token is read again before decoding.
            answer = runtime.complete(prompt[:length], 1 + new_tokens, reuse=True)
            found["decode"][str(length)] = answer.decoded / answer.decode_seconds
    found["peak_memory_bytes"] = peak_memory()
    return found


def predict(request: dict[str, Any]) -> dict[str, Any]:
    """Say what comes next at the last positions of token windows, and how lines are split into tokens.

    Args:
        request: `model`, `threads`, `windows` (lists of token ids), `predicted` (positions at the end of each),
            `candidates` (likeliest tokens to name), `lines` (text).

    Returns:
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
    return {"top": top, "lines": [runtime.tokenize(line) for line in request["lines"]]}


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


TASKS = {"measure": measure, "predict": predict}


def main() -> None:
    """Answer one request and leave."""
    request = json.load(sys.stdin)
    status = 0
    try:
        sys.stdout.write(json.dumps(TASKS[request["task"]](request)) + "\n")
    except IShrinkError as error:
        sys.stderr.write(f"error: {error}\n")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
