"""Starting llama.cpp in a process of its own, and saying in its own words why it failed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import SourceError
from .convert import own_words

_LIMIT = 1800
"""Seconds that one answer may take: far more than any of ours, so that nothing waits for ever."""

_KILLED = 9
"""What the system sends to a process when memory runs out; Windows has no name for it."""


class Worker:
    """A process that runs a task of `worker.py` and has answered its first line; it ends with the context.

    Args:
        request: `task` and what it takes.
        limit: Seconds that one answer may take; the process is stopped after them.

    Raises:
        SourceError: llama.cpp cannot load or run the file, or takes too long.
    """

    def __init__(self, request: Mapping[str, Any], *, limit: float = _LIMIT) -> None:
        self._name = Path(request["model"]).name
        self._limit = limit
        self._late = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads while it fills would stop it
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
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
        self._late = True
        self._process.kill()

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to one more line.

        Args:
            message: What the task takes.

        Raises:
            SourceError: llama.cpp cannot run the file, or takes too long.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(self._limit, self._stop)
        timer.daemon = True
        timer.start()
        line = ""
        try:
            with suppress(OSError):  # the process has gone
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if line.endswith("\n"):  # half a line is what a process leaves that was killed
            found: dict[str, Any] = json.loads(line)
            return found
        status = self._process.wait()
        if self._late:
            raise SourceError(f"llama.cpp took more than {self._limit:g} s with {self._name}; it was stopped")
        self._log.seek(0)
        words = runtime_words(self._log.read().decode("utf-8", errors="replace"))
        if status == -_KILLED:
            words = "its process was killed by signal 9; is memory short?"
        elif status < 0:
            words = f"its process was ended by signal {-status}: {words}"
        raise SourceError(f"llama.cpp cannot run {self._name}: {words}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process: it has nothing to lose."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]


def run_worker(request: Mapping[str, Any], *, limit: float = _LIMIT) -> dict[str, Any]:
    """Run a task of `worker.py` in a fresh process, and return its first answer.

    Args:
        request: `task` and what it takes.
        limit: Seconds that one answer may take; the process is stopped after them.

    Raises:
        SourceError: llama.cpp cannot load or run the file, or takes too long.
    """
    with Worker(request, limit=limit) as worker:
        return worker.first


def runtime_words(log: str) -> str:
    """Return what llama.cpp's log says went wrong.

    Args:
        log: Its standard error.
    """
    loading = re.findall(r"error loading model: (.+)", log)
    return loading[-1][:300] if loading else own_words(log)
