"""The working folder of a schedule: the finished stages in it, and the request that they belong to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.digest import as_json
from ..core.durable import write_whole
from ..errors import RequestError
from ..planning.schedule import ScheduledStage

REQUEST = "request.json"


def schedule_folder(output: Path) -> Path:
    """Return where a schedule works: a hidden folder beside its output, so that the same command finds it again.

    Args:
        output: The output folder.
    """
    folder = output.resolve()
    return folder.with_name(f".{folder.name}.schedule")


def stage_folder(folder: Path, number: int, stage: ScheduledStage) -> Path:
    """Return the output folder of a stage, which is there when the stage is finished.

    Args:
        folder: The working folder.
        number: Number of the stage, from 1.
        stage: The stage.
    """
    return folder / f"{number}-{stage.name}"


def finished_stages(folder: Path) -> list[Path]:
    """Return the folders of finished stages: output folders appear whole or not at all."""
    return sorted(path for path in folder.glob("[0-9]*-*") if path.is_dir())


def open_schedule(folder: Path, request: Mapping[str, Any]) -> None:
    """Make the working folder, or go on in one that was made for the same request.

    Args:
        folder: The folder.
        request: Everything that the stages depend on, as plain values.

    Raises:
        RequestError: It holds finished stages of another request; the message names what differs.
        OutputError: It cannot be written.
    """
    path, requested = folder / REQUEST, as_json(request)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    different = sorted(key for key in requested.keys() | found.keys() if requested.get(key) != found.get(key))
    if not different:
        return
    if done := finished_stages(folder):
        raise RequestError(
            f"{folder} holds {len(done)} finished stages of another request ({', '.join(different)} differ); "
            "repeat that request to finish it, or delete the folder to start over"
        )
    clear_schedule(folder)
    write_whole(path, json.dumps(requested, indent=2).encode())


def clear_schedule(folder: Path) -> None:
    """Remove what is in the working folder, which stays locked by this process.

    Args:
        folder: The folder.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
