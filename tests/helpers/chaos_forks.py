"""Forks of a process that has imported everything, which run commands in a second."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Fork:
    """A running command.

    Args:
        pid: Its process.
        log: Where its standard error goes.
    """

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log = pid, log

    def kill(self) -> None:
        """Send SIGKILL; a process that ended is left alone, since it is not waited for yet."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait, and return its exit status, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def errors(self) -> str:
        """What it wrote to standard error."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def save_blank(figure: Any, file: Any, **how: Any) -> None:
    """Save a figure without drawing it, which takes most of the time of a run on tiny models."""
    file.write(b"a figure" * 1000)


def hasten() -> None:
    """Shorten the waits between retries: what they wait for is here at once."""
    from optimum_ishrink.hub import retries

    wait = time.sleep

    def short(seconds: float) -> None:
        wait(min(seconds, 0.02))

    for module in (time, retries):
        setattr(module, "sleep", short)  # noqa: B010


def close_folders() -> None:
    """Close the handles of folders, so that this process holds no lock of the run, as a new program would not."""
    for handle in map(int, os.listdir("/dev/fd")):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if handle > 2 and stat.S_ISDIR(os.fstat(handle).st_mode):
                os.close(handle)


def fork_converter(command: Sequence[str], failure: str) -> None:
    """Run a Python program in a fork instead of a new process, which would import torch and transformers again."""
    from optimum_ishrink.edge.programs import program_failure

    (module,) = (command[i + 1] for i, word in enumerate(command) if word == "-m")
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        status = 0
        try:
            os.dup2(writer, 2)
            close_folders()
            sys.argv = [module, *command[command.index(module) + 1 :]]
            with contextlib.redirect_stdout(sys.stderr):
                runpy.run_module(module, run_name="__main__")
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode())
            status = 1
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as pipe:
        text = pipe.read()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise program_failure(failure, text)
