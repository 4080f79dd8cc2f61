"""The output folder of a run: the one that was named, or a temporary one that exists as long as the result."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

from ..checkpoint.source import Source
from ..core.output import check_output
from ..core.processes import process_count
from ..errors import RequestError
from ..pipeline.job import Job, Pipeline
from ..pipeline.runner import run
from ..report.run import Run
from .result import ShrinkResult


def run_into(
    save_directory: str | Path | None,
    pipeline: Pipeline,
    make_job: Callable[[Path], Job],
    *,
    name: str,
    overwrite: bool,
    base: Source | None = None,
) -> tuple[ShrinkResult, Path | None]:
    """Run a pipeline into its output folder, or into a temporary one.

    Args:
        save_directory: The output folder, or None.
        pipeline: The stages.
        make_job: Returns the job of an output folder.
        name: Name of a temporary output folder.
        overwrite: Replace what is in the output folder.
        base: The unpruned model, where the job does not know it.

    Returns:
        The result, and the folder to remove with it: see `remove_with`.

    Raises:
        RequestError: Several processes run, and have no common folder.
    """
    if save_directory is None and process_count() > 1:
        raise RequestError("several processes need a common output folder; give save_directory")
    temporary = Path(tempfile.mkdtemp(prefix="ishrink-")) if save_directory is None else None
    folder = expanded(save_directory) if save_directory is not None else Path(temporary or "") / name
    check_output(folder, overwrite)  # before a teacher is downloaded
    try:
        job = make_job(folder)
        report = run(pipeline, job, overwrite=overwrite)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    session = job.session
    base = base or (session.source if job.is_base else None)
    return ShrinkResult(folder, Run.read(folder).plan, report, session.dtype, session.device, base), temporary


def remove_with(result: ShrinkResult, temporary: Path | None) -> None:
    """Remove a temporary folder once the result is gone. Until this is called, it stays."""
    if temporary is not None:
        weakref.finalize(result, shutil.rmtree, temporary, ignore_errors=True)


def expanded(path: str | Path) -> Path:
    """Return a path with `~` replaced by the home folder."""
    return Path(str(path)).expanduser()
