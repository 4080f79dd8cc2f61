"""The working folder of a run: what it is for, and its checkpoints. It outlives the process that fills it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.durable import write_whole
from ..errors import RequestError

PREFIX = "checkpoint-"
REQUEST = "request.json"


def work_folder(output: Path) -> Path:
    """Return where a run works: a hidden folder beside its output, so that the same command finds it again."""
    folder = output.resolve()
    return folder.with_name(f".{folder.name}.recovery")


def open_work(folder: Path, request: Mapping[str, Any], *, name: str = REQUEST, write: bool = True) -> None:
    """Make a working folder, or resume in one that was made for the same request.

    A request that left no checkpoint left nothing to lose: another request takes over its folder.

    Args:
        folder: The folder.
        request: Everything that the run's result depends on, as plain values.
        name: File that holds it.
        write: Whether this process may write.

    Raises:
        RequestError: The folder holds checkpoints of another request; the message names what differs.
        OutputError: It cannot be written.
    """
    path = folder / name
    requested = json.loads(json.dumps(request))
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        different = sorted(key for key in requested.keys() | found.keys() if requested.get(key) != found.get(key))
        if not different:
            pass
        elif checkpoints(folder):
            names = ", ".join(
                f"{key} ({_brief(found.get(key))} there, {_brief(requested.get(key))} now)" for key in different
            )
            raise RequestError(
                f"{folder} holds an unfinished recovery of another request: {names}; "
                "repeat that request to finish it, or delete the folder to start over"
            )
        elif write:
            for stale in folder.glob("*.json"):
                stale.unlink()
    if write and not path.is_file():
        write_whole(path, json.dumps(requested, indent=2).encode())
    if write:
        for partial in folder.glob(f"{PREFIX}*.partial"):
            shutil.rmtree(partial, ignore_errors=True)


def discard_unused(folder: Path) -> None:
    """Remove a working folder in which nothing was computed yet: neither a checkpoint nor sampled text."""
    if folder.is_dir() and all(path.suffix == ".json" or _is_unfinished(path) for path in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)


def _is_unfinished(path: Path) -> bool:
    """Whether a run was killed while it wrote this file."""
    return path.name.startswith(".") and path.suffix == ".partial"


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a working folder, oldest first. One that has its final name is complete."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def last_step(folder: Path) -> int | None:
    """Return the step of the last whole checkpoint, or None."""
    found = checkpoints(folder)
    return int(found[-1].name.removeprefix(PREFIX)) if found else None


def drop_old_checkpoints(folder: Path, best: Path | None) -> None:
    """Remove all checkpoints but the last and the best."""
    for path in checkpoints(folder)[:-1]:
        if best is None or path.name != best.name:
            shutil.rmtree(path, ignore_errors=True)
