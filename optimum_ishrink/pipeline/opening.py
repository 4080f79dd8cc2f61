"""The stage that opens the written checkpoint as its user will, before it takes its place."""

from __future__ import annotations

from ..checkpoint.reopening import check_files, check_logits, check_runs
from ..checkpoint.source import Source
from .job import Job


def open_written(job: Job) -> None:
    """Open the written checkpoint again, and compare its logits on a short text with those of its tensors.

    The model is loaded where the run loads one anyway: to score, repair, set weights to zero by text, train, measure
    or time. Otherwise the tensors were compared one at a time as they were cut, and no model is loaded. Where layers
    come from disk, they do so here, too: the model that transformers makes of them runs on the text.
    """
    session, config = job.session, job.config
    tokenizer_folder = (job.student or session.source).folder
    if job.student is None and job.trim is not None:
        tokenizer_folder = job.trim.folder
    if job.made_of is not None:
        tokenizer_folder = job.made_of
    tokenizer = check_files(job.folder, tokenizer_folder)
    loads = config.recovers or config.evaluate or config.benchmark or config.sparsity_reads_text
    if session.offloads:
        check_runs(session.load(Source(job.name, job.folder)), tokenizer)
    elif session.loaded is not None or loads:
        check_logits(job.folder, tokenizer, session.dtype, session.device)
