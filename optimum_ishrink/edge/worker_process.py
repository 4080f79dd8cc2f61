"""Starting a runtime in a separate process, and the reason when it fails. Imports the standard library alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import SourceError
from .program_log import llama_cpp_failure

_LIMIT = 1800
"""Time limit for one answer in seconds: far more than any takes here, so that nothing hangs."""

_KILLED = 9
"""The signal that ends a process when memory runs out; Windows has no name for it."""

PROCESS_BYTES = 128 * 2**20
"""Bytes that a process needs in addition to its model: Python, and llama.cpp's buffers."""

MARGIN = 8
"""Tokens of context in addition to the prompt and its answer."""


class Process(Protocol):
    """A process that has loaded a model (see `worker.measure`)."""

    first: dict[str, Any]

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Run one turn."""


Start = Callable[[Mapping[str, Any]], AbstractContextManager[Process]]


@dataclass(frozen=True)
class Program:
    """A program that answers line by line, as `worker.serve` does.

    Args:
        name: What runs models in it, for messages.
        module: The module that is run.
        failure: Returns why it failed, from what it wrote on standard error and the error that it answered, if any.
    """

    name: str
    module: str
    failure: Callable[[str, str | None], str]


LLAMA_CPP = Program("llama.cpp", f"{__package__}.worker", llama_cpp_failure)


class WorkerProcess:
    """A process that runs a task of a program and has answered its first line; the context manager ends it.

    Args:
        request: `task` and its arguments.
        limit: Time limit for one answer in seconds; then the process is killed.
        program: The program.

    Raises:
        SourceError: The runtime cannot load or run the model, or takes too long.
    """

    def __init__(self, request: Mapping[str, Any], *, limit: float = _LIMIT, program: Program = LLAMA_CPP) -> None:
        self._program = program
        self._name = Path(request["model"]).name
        self._limit = limit
        self._timed_out = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - a full pipe that nobody reads would block it
        self._process = subprocess.Popen(
            [sys.executable, "-m", program.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            self.first = self.ask(request)
        except BaseException:
            self.close()
            raise

    def _stop(self) -> None:
        self._timed_out = True
        self._process.kill()

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send one more line and return its answer.

        Args:
            message: What the task expects.

        Raises:
            SourceError: The runtime cannot run the model, or takes too long.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(self._limit, self._stop)
        timer.daemon = True
        timer.start()
        line = ""
        try:
            with suppress(OSError):  # the process has ended
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
        finally:
            timer.cancel()
        answer: dict[str, Any] = json.loads(line) if line.endswith("\n") else {}  # a killed process leaves half a line
        if answer and "error" not in answer:
            return answer
        status = self._process.wait()
        if self._timed_out:
            raise SourceError(
                f"{self._program.name} took more than {self._limit:g} s with {self._name}; it was killed"
            )
        self._log.seek(0)
        log = self._log.read().decode("utf-8", errors="replace")
        reason = self._program.failure(log, answer.get("error"))
        if status == -_KILLED:
            reason = "its process was killed by signal 9; the machine may be out of memory"
        elif status < 0:
            reason = f"its process was ended by signal {-status}: {reason}"
        raise SourceError(f"{self._program.name} cannot run {self._name}: {reason}")

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the process; it has no state to save."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]


def run_worker(request: Mapping[str, Any], *, limit: float = _LIMIT) -> dict[str, Any]:
    """Run a task of `worker.py` in a fresh process, and return its first answer.

    Args:
        request: `task` and its arguments.
        limit: Time limit for one answer in seconds; then the process is killed.

    Raises:
        SourceError: llama.cpp cannot load or run the file, or takes too long.
    """
    with WorkerProcess(request, limit=limit) as worker:
        return worker.first
