"""The working folder of a run whose model is read from disk layer by layer. It outlives a run that is killed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..configuration import IShrinkConfig
from ..core.durable import disk_errors, replace_file
from ..core.locks import claimed_folder
from ..core.progress import note
from ..core.spool import check_room
from ..core.version import __version__
from ..errors import IShrinkError, OutputError, SourceError
from .job import Job
from .stage_work import room_needed

_REQUEST = "request.json"
_FINISHED = "*-*.json"
"""What finished layers are noted in."""


def offload_folder(config: IShrinkConfig, output: Path) -> Path:
    """Return where a run keeps hidden states, and what it has finished.

    Args:
        config: The request.
        output: The output folder.
    """
    folder = output.resolve()
    if config.offload_folder is None:
        return folder.with_name(f".{folder.name}.offload")
    mark = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return Path(config.offload_folder).expanduser().resolve() / f"{folder.name}-{mark}.offload"


@contextmanager
def offloading(job: Job, *, runs_model: bool, calibrates: bool) -> Iterator[None]:
    """Give a run that reads its model from disk a folder that the same command finds again when it is killed.

    Args:
        job: The run.
        runs_model: Whether it runs the model at all.
        calibrates: Whether it reads calibration text.

    Raises:
        RequestError: Layers are to be read from disk, and cannot be.
        OutputError: The folder cannot be written, has no room for the hidden states, or another run is in it.
    """
    if not calibrates:
        job.session.needs_whole = None
    if not runs_model or not job.session.offloads:
        yield
        return
    folder = offload_folder(job.config, job.output)
    with claimed_folder(folder, "keeps hidden states"):
        try:
            with disk_errors(folder):
                _open(folder, _request(job))
            binding, nbytes = job.session.source.binding, job.session.dtype.itemsize
            room = room_needed(binding, job.shape or binding.shape, job.config, element_bytes=nbytes)
            check_room(folder, room - sum(each.stat().st_size for each in folder.glob("*.states")))
            job.session.spool_folder = folder
            yield
        except IShrinkError as error:
            # A full disk or a file that cannot be read can be mended; anything else would fail again.
            if isinstance(error, (OutputError, SourceError)) and any(folder.glob(_FINISHED)):
                note(f"finished layers are in {folder}; the same command resumes from there")
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _request(job: Job) -> dict[str, Any]:
    """Return everything that the contents of the folder depend on."""
    source, config = job.session.source, job.config
    if source.read_from is not None:
        files = [source.read_from]
    else:
        files = sorted({info.file for info in source.tensors.values()} | {source.folder / "config.json"})
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    request = {
        "config": {**config.to_dict(), "offload": None, "offload_folder": None},
        "files": [list(each) for each in stats],
        "calibration": [text.fingerprint() for text in job.calibration.sources],
        "versions": [__version__, torch.__version__],
        "threads": torch.get_num_threads(),
        "dtype": str(job.session.dtype),
        "stored": sorted({str(info.dtype) for info in source.tensors.values()}),
    }
    found: dict[str, Any] = json.loads(json.dumps(request))
    return found


def _open(folder: Path, request: dict[str, Any]) -> None:
    """Remove what belongs to another request, or to nothing."""
    path = folder / _REQUEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == request:
        note(f"resuming in {folder}: finished layers and shards are read from there")
        used = "".join(each.read_text(encoding="utf-8") for each in folder.glob("*.json"))
        stale = [each for each in folder.iterdir() if each.suffix in (".states", ".matrix", ".partial")]
        for each in stale:
            if each.name not in used:
                each.unlink()
        return
    if any(folder.glob(_FINISHED)):
        note(f"finished layers in {folder} are of another request, or of a model that has changed: they are removed")
    for each in folder.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()
    replace_file(path, json.dumps(request).encode())
