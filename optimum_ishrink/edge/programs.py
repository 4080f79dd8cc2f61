"""Running llama.cpp's programs, and what to raise when one fails."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from ..errors import RequestError, SourceError
from .gguf_quantizations import PROGRAM
from .program_log import failure_reason

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY")

_FULL = re.compile(r"No space left on device|Disk quota exceeded|File too large|\d+ requested and \d+ written")
"""What Python, and numpy after a part of an array, say in the log of a program that cannot write on."""


def check_program(names: Sequence[str]) -> None:
    """Check that `llama-quantize` is on the PATH.

    Args:
        names: Names of what it is to write.

    Raises:
        RequestError: It is not; the message says how to get it.
    """
    if names and shutil.which(PROGRAM) is None:
        raise RequestError(
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} written by llama.cpp's program {PROGRAM}, which "
            "is not on the PATH: install llama.cpp (its releases, Homebrew, conda-forge and nixpkgs have it), or "
            "choose q4_0, q4_1, q5_0, q5_1 or q8_0, which do not need it"
        )


def run_program(command: Sequence[str], failure: str) -> None:
    """Run a program without network access to the Hub and without secrets.

    Args:
        command: The program and its arguments.
        failure: What could not be done if it fails.

    Raises:
        SourceError: It failed; the message has the reason from its log.
    """
    environment = {key: value for key, value in os.environ.items() if not _SECRET.search(key.upper())}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", errors="replace", env=environment, check=False
    )
    if done.returncode:
        raise program_failure(failure, done.stderr or done.stdout)


def program_failure(failure: str, log: str) -> Exception:
    """Return what to raise when a program failed.

    Args:
        failure: What could not be done.
        log: What the program wrote.
    """
    if _FULL.search(log):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # `staged_file` names the file
    return SourceError(f"{failure}: {failure_reason(log)}")
