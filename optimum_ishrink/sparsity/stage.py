"""The stage that sets weights to zero: what it checks, what it does to a checkpoint, and the zeros in its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..architectures.binding import Binding
from ..architectures.model_class import meta_model, parse_config, stored_state
from ..checkpoint.changed_tensors import stored_tensors, write_changed
from ..checkpoint.loading import load_model
from ..checkpoint.session import Session
from ..checkpoint.source import Source
from ..checkpoint.tensors import DTYPES, read_tensor
from ..errors import VerificationError
from ..modeling.layerwise import check_apart
from ..report.sparsity import KindOfMatrix, Pattern, SparsityPlan, SparsityRecord, parse_pattern
from ..text.calibration import Calibration
from .layers import zero_by_magnitude, zero_by_text
from .matrices import Matrix, check_widths, find_matrices, stored_matrices
from .options import SparsityOptions


def plan_sparsity(options: SparsityOptions, source: Source, shape: Mapping[str, int]) -> SparsityPlan | None:
    """Return which kinds of matrices get zeros at a shape; None where none were requested. Needs no weights.

    Args:
        options: The request.
        source: The model.
        shape: The complete new shape.

    Raises:
        ShapeError: A matrix cannot hold the pattern.
        RequestError: There are no matrices, or the model's layers cannot be run one by one and the criterion does so.
    """
    if options.sparsity is None:
        return None
    binding = source.binding
    sizes = binding.resized(shape)
    matrices, skipped = find_matrices(meta_model(parse_config(source.raw_config)), binding, sizes)
    check_widths(matrices, parse_pattern(options.sparsity), options.sparsity, sizes)
    if options.sparsity_reads_text:
        check_apart(binding, f"sparsity by {options.sparsity_criterion}", "use --sparsity-criterion magnitude")
    kinds = tuple(dict.fromkeys(matrix.kind for matrix in matrices))
    return SparsityPlan(options.sparsity, options.sparsity_criterion, kinds, skipped)


def sparsify(
    session: Session, planned: SparsityPlan, calibration: Calibration, folder: Path, *, batch_size: int
) -> dict[str, float]:
    """Set weights of a checkpoint to zero, and update others where the criterion does so.

    Args:
        session: The run: device and dtype.
        planned: Which matrices, and how.
        calibration: The calibration text, in the checkpoint's tokens; criteria that read none do not draw it.
        folder: The checkpoint; its weights are replaced.
        batch_size: Windows run at once.

    Returns:
        By kind of matrix, the mean share of the outputs' energy on the calibration text that the change makes up;
        empty for criteria that do not know it.

    Raises:
        DataError: A matrix reads no token of the text.
        NotFiniteError: What it reads is not finite.
        RequestError: What experts read cannot be observed.
    """
    binding = Source(folder.name, folder).binding
    pattern = parse_pattern(planned.pattern)
    stored, own = stored_tensors(folder), torch.device("cpu")
    # The weights are changed in the dtype of the files: what stays must not be rounded to the dtype of the run.
    loaded = load_model(folder, torch.float32, own) if _is_mixed(stored) else None
    exact = loaded or load_model(folder, DTYPES[next(iter(stored.values())).dtype], own)
    matrices, _ = find_matrices(exact, binding)
    weights = {matrix.name: exact.get_parameter(matrix.name) for matrix in matrices}
    errors: dict[str, float] = {}
    if planned.criterion == "magnitude":
        zero_by_magnitude(matrices, weights, pattern)
    else:
        runs = _runs(exact, session, folder)
        with calibration.shown_to(runs):
            errors = zero_by_text(
                runs,
                binding,
                matrices,
                weights,
                pattern,
                planned.criterion,
                calibration.windows,
                batch_size=batch_size,
            )
    write_changed(stored_state(exact), folder, [each.name for each in stored_matrices(binding, matrices)])
    return errors


def _is_mixed(stored: Mapping[str, Any]) -> bool:
    return len({info.dtype for info in stored.values()}) > 1


def _runs(exact: Any, session: Session, folder: Path) -> Any:
    """Return the model that runs: the exact one, where it has the device and the dtype of the run."""
    same = (exact.dtype, exact.device) == (session.dtype, session.device)
    return exact if same else load_model(folder, session.dtype, session.device)


def count_zeros(planned: SparsityPlan, folder: Path, errors: Mapping[str, float]) -> SparsityRecord:
    """Return the zeros in the files of a checkpoint, once it is known that they have the pattern.

    Args:
        planned: Which matrices were to have which zeros.
        folder: The checkpoint.
        errors: By kind of matrix, what the change made up.

    Raises:
        VerificationError: A matrix has fewer zeros than its pattern.
    """
    source = Source(folder.name, folder)
    matrices, _ = find_matrices(meta_model(parse_config(source.raw_config)), source.binding)
    stored = stored_matrices(source.binding, matrices)
    pattern = parse_pattern(planned.pattern)
    found: dict[str, list[int]] = {kind: [0, 0, 0] for kind in planned.matrices}
    for matrix in stored:
        is_zero = matrix.by_rows(read_tensor(source.tensors[matrix.name])) == 0
        if pattern.group and not _has_groups(is_zero, pattern):
            raise VerificationError(f"{matrix.name} has fewer zeros than {planned.pattern} in some groups of its rows")
        counts = found.setdefault(matrix.kind, [0, 0, 0])
        for place, count in enumerate((1, is_zero.numel(), int(is_zero.sum()))):
            counts[place] += count
    kinds = tuple(
        KindOfMatrix(kind, count, weights, zeros, error=errors.get(kind))
        for kind, (count, weights, zeros) in found.items()
        if count
    )
    record = SparsityRecord(planned.pattern, planned.criterion, kinds)
    _check_share(record, pattern, stored, source.binding)
    return record


def _has_groups(is_zero: torch.Tensor, pattern: Pattern) -> bool:
    groups = is_zero.reshape(-1, pattern.group)
    return bool((groups.sum(dim=-1) >= pattern.zeros).all())


def _check_share(record: SparsityRecord, pattern: Pattern, stored: Sequence[Matrix], binding: Binding) -> None:
    # Counts are whole numbers in each row.
    rounding = 1 / min(matrix.columns(binding.sizes) for matrix in stored)
    if record.zeros < (pattern.share - rounding) * record.weights:
        raise VerificationError(
            f"{record.zeros:,} of {record.weights:,} weights are zero, and {record.pattern} were to be"
        )
