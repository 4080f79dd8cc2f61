"""Settings as words of a command line."""

from __future__ import annotations

from typing import Any


def flags(settings: dict[str, Any]) -> list[str]:
    words = []
    for name, value in settings.items():
        words += ["--" + name.replace("_", "-"), ",".join(value) if isinstance(value, list) else str(value)]
    return words
