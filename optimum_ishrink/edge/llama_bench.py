"""llama.cpp's program `llama-bench` as a runtime: a process for each figure. Imports the standard library alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ..errors import SourceError
from .program_log import llama_cpp_failure

PROGRAM = "llama-bench"

_CACHE_STEP = 256
"""llama.cpp gives the KV cache room for a multiple of so many tokens."""

_LAUNCHER = """
import os, subprocess, sys
done = subprocess.Popen(sys.argv[1:])
if hasattr(os, "wait4"):
    _, status, usage = os.wait4(done.pid, 0)
    code, peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
else:
    code, peak = done.wait(), 0
print()
print(peak, flush=True)
sys.exit(code if code >= 0 else 128 - code)
"""
"""Runs a program and adds its peak memory in bytes as a last line.

A process's peak memory includes that of the process that started it, so a small fresh one starts it.
"""


class LlamaBench:
    """Runs `llama-bench` on a file for every turn, and answers as `edge.worker.measure` does.

    The program's KV cache has room for its own tokens only. What the cache of the requested context needs in addition
    is added to the memory that it used.

    Args:
        request: `model`, `threads`, `new_tokens` and `context`.
        cache_bytes: Bytes of the KV cache for each token of context.
    """

    def __init__(self, request: Mapping[str, Any], *, cache_bytes: float = 0.0) -> None:
        self._request = request
        self._cache_bytes = cache_bytes
        self.first: dict[str, Any] = {"build": PROGRAM, "memory_before_bytes": _memory_before()}

    def __enter__(self) -> LlamaBench:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: no process outlives its turn."""

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Time a prompt and what is decoded after it.

        Args:
            message: `length`, the prompt's tokens.

        Raises:
            SourceError: The program fails, or answers in another form.
        """
        length, new_tokens = message["length"], self._request["new_tokens"]
        prompt, prompt_peak = self._run(length, 0, 0)
        decode, decode_peak = self._run(0, new_tokens, length)
        self.first["build"] = f"{PROGRAM} {prompt['build_number']} ({prompt['build_commit']})"
        peaks = [peak for peak in (prompt_peak, decode_peak) if peak is not None]
        return {
            "first": prompt["avg_ns"] / 1e9,
            "decode": new_tokens / (decode["avg_ns"] / 1e9),
            "peak_memory_bytes": max(peaks) if peaks else None,
        }

    def _run(self, prompt: int, new_tokens: int, depth: int) -> tuple[dict[str, Any], float | None]:
        """Return what the program measured, and its peak memory with the requested context."""
        lengths = {"-p": prompt, "-n": new_tokens, "-d": depth, "-t": self._request["threads"], "-ngl": 0, "-r": 1}
        words = [word for name, value in lengths.items() for word in (name, str(value))]
        output, peak = _launch(["-m", str(self._request["model"]), "-o", "json", *words])
        try:
            (found,) = json.loads(output)
            if not (found["avg_ns"] > 0 and "build_number" in found and "build_commit" in found):
                raise KeyError
        except (ValueError, KeyError, TypeError):
            raise SourceError(
                f"{PROGRAM} answers in a form that is not known here; install one of llama.cpp since June 2025"
            ) from None
        held = -(-(prompt + new_tokens + depth) // _CACHE_STEP) * _CACHE_STEP
        missing = max(0, self._request["context"] - held) * self._cache_bytes
        return found, None if peak is None else peak + missing


@cache
def _memory_before() -> float | None:
    """Return the memory that the program takes without a model."""
    return _launch(["--help"])[1]


def _launch(words: Sequence[str]) -> tuple[str, float | None]:
    """Run the program; return its standard output, and its peak memory in bytes where the system reports it."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise SourceError(f"{PROGRAM} is not on the PATH: install llama.cpp")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, program, *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise SourceError(f"{PROGRAM} fails with status {done.returncode}: {llama_cpp_failure(done.stderr)}")
    output, _, peak = done.stdout.rstrip("\n").rpartition("\n")
    return output, float(peak) or None
