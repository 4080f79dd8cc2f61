"""Rounding a checkpoint's weights for what they compute, so that an export of it finds these values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..checkpoint.session import Session
from ..checkpoint.source import Source
from ..checkpoint.tensors import overwrite_tensor
from ..edge.calibrated_start import calibrated_start
from ..edge.recovery_values import exported_values
from ..recovery.exported_weights import ExportedValues
from .job import Job

ROUNDING_WINDOWS = 64
"""Windows of text that weights are rounded on, at most, as many as the default calibration has: more change little."""


def rounded_weights(
    student: Source,
    exported: ExportedValues,
    session: Session,
    windows: torch.Tensor,
    solved: Mapping[str, torch.Tensor],
    *,
    trained: bool,
) -> dict[str, torch.Tensor]:
    """Return a checkpoint's matrices, rounded to an export's types for what they compute.

    Args:
        student: The checkpoint.
        exported: What its export holds, in types of GGUF.
        session: Device and dtype.
        windows: Token ids, int64, shape (windows, length); the first `ROUNDING_WINDOWS` are read.
        solved: Weights that take the place of the checkpoint's first, by their names in it.
        trained: Whether they are trained after that.

    Returns:
        Weights by their names in the checkpoint, in its dtypes.
    """
    model = student.load_model(session.dtype, session.device)
    parameters = {tensor.name: tensor.parameter for tensor in student.binding.tensors.values()}
    with torch.no_grad():
        for name, weight in solved.items():
            model.get_parameter(parameters[name]).copy_(weight)
    return calibrated_start(student, exported, model, windows[:ROUNDING_WINDOWS], trained=trained)


def round_cut(job: Job) -> None:
    """Round the cut checkpoint to the type that it is made for, where one is named."""
    wanted = job.config.compensation_for
    if wanted is None:
        return
    assert job.compensation is not None, "the cut is repaired before it is rounded"
    student = Source(job.folder.name, job.folder)
    exported = exported_values(student, wanted)
    tensors = student.tensors
    found = rounded_weights(student, exported, job.session, job.calibration.windows, {}, trained=False)
    for name, weight in found.items():
        overwrite_tensor(tensors[name], weight)
    job.compensation = replace(job.compensation, rounded_for=wanted)
