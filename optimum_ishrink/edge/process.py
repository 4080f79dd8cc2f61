"""Starting llama.cpp in a process of its own, and saying in its own words why it failed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError
from .convert import own_words

_LIMIT = 1800
"""Seconds that one process may take: far more than any of ours, so that nothing waits for ever."""


def run_worker(request: Mapping[str, Any], *, limit: float = _LIMIT) -> dict[str, Any]:
    """Run one task of `worker.py` in a fresh process.

    Args:
        request: `task` and what it takes.
        limit: Seconds after which the process is stopped.

    Raises:
        SourceError: llama.cpp cannot load or run the file, or takes too long.
    """
    name = Path(request["model"]).name
    command = [sys.executable, "-m", f"{__package__}.worker"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"llama.cpp took more than {limit:g} s with {name}; it was stopped") from None
    if done.returncode:
        raise SourceError(f"llama.cpp cannot run {name}: {runtime_words(done.stderr)}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def runtime_words(log: str) -> str:
    """Return what llama.cpp's log says went wrong.

    Args:
        log: Its standard error.
    """
    loading = re.findall(r"error loading model: (.+)", log)
    return loading[-1][:300] if loading else own_words(log)
