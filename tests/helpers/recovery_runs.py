"""Recoveries from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimum_ishrink.cli.program import main
from optimum_ishrink.core.json_files import read_json


def recover(small: Path, output: Path, flags: list[str], *more: str) -> int:
    return main(["recover", "--model", str(small), "--output", str(output), *flags, *more])


def recovered(folder: Path) -> dict[str, Any]:
    """The recovery record in a folder's report."""
    found: dict[str, Any] = read_json(folder / "ishrink_report.json")["recovery"]
    return found


def changed(flags: list[str], **values: str) -> list[str]:
    words = list(flags)
    for name, value in values.items():
        words[words.index("--" + name.replace("_", "-")) + 1] = value
    return words
