"""The stages that set weights to zero, and that count the zeros in what was written."""

from __future__ import annotations

from ..sparsity.stage import count_zeros, sparsify
from .job import Job


def sparsify_cut(job: Job) -> None:
    """Set weights of the cut checkpoint to zero, where that is requested."""
    planned = job.cut_plan.sparsity
    if planned is None:
        return
    if job.config.sparsity_reads_text:
        len(job.calibration.windows)  # the base may have to sample them; after that it is not needed here
        job.session.loaded = job.cutting.loaded = None
    job.made_up = sparsify(job.cutting, planned, job.calibration, job.folder, batch_size=job.config.batch_windows)


def count_written(job: Job) -> None:
    """Count the zeros in the written files, and check that they have the pattern; recovery has to retain it."""
    planned = None if job.plan is None else job.plan.sparsity
    if planned is None:
        return
    made_up = job.made_up
    if job.old is not None and job.old.sparsity is not None:
        made_up = {kind.name: kind.error for kind in job.old.sparsity.kinds if kind.error is not None}
    job.sparsity = count_zeros(planned, job.folder, made_up)
