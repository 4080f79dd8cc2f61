"""Why a program failed, from the log that it wrote."""

from __future__ import annotations

import re

_ERRORS = (r"ERROR:[\w.-]+:\s*(.+)", r"(?:[\w.]+\.)?\w*(?:Error|Exception):\s*(.+)", r".*\berror\b:?\s*(.+)")
_LONGEST = 300


def failure_reason(log: str) -> str:
    """Return the line of a program's log that names the error, without the log's decoration.

    Args:
        log: What the program wrote.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for pattern in _ERRORS:
        found = [match[1] for line in lines if (match := re.fullmatch(pattern, line, re.IGNORECASE))]
        if found:
            return found[-1][:_LONGEST]
    return lines[-1][:_LONGEST] if lines else "it wrote no error message"


def llama_cpp_failure(log: str) -> str:
    """Return why llama.cpp failed: the reason that it gives for a model that does not load, else the error's line.

    Args:
        log: Its standard error.
    """
    loading = re.findall(r"error loading model: (.+)", log)
    return loading[-1][:_LONGEST] if loading else failure_reason(log)
