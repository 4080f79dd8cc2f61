"""Why a program failed, from the log that it wrote."""

from __future__ import annotations

import re

_ERRORS = (r"ERROR:[\w.-]+:\s*(.+)", r"(?:[\w.]+\.)?\w*(?:Error|Exception):\s*(.+)", r".*\berror\b:?\s*(.+)")
_LONGEST = 300


def failure_reason(log: str, error: str | None = None) -> str:
    """Return why a program failed: the error that it answered, else its log's line that names one, undecorated.

    Args:
        log: What the program wrote.
        error: What it answered; None for nothing.
    """
    if error is not None:
        return error
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for pattern in _ERRORS:
        found = [match[1] for line in lines if (match := re.fullmatch(pattern, line, re.IGNORECASE))]
        if found:
            return found[-1][:_LONGEST]
    return lines[-1][:_LONGEST] if lines else "it wrote no error message"


def llama_cpp_failure(log: str, error: str | None = None) -> str:
    """Return why llama.cpp failed: the reason that it gives for a model that does not load, else `failure_reason`.

    Args:
        log: Its standard error.
        error: What the process that ran it answered; None for nothing.
    """
    loading = re.findall(r"error loading model: (.+)", log)
    return loading[-1][:_LONGEST] if loading else failure_reason(log, error)
