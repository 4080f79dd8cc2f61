"""Saying whether an export is the one that a checkpoint was recovered for."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint.source import Source
from ..core.progress import note
from ..report.recovery import RecoveryRecord
from ..report.run import read_run
from .options import CALIBRATED_ROUNDING, GROUP_SIZES, ExportOptions


def note_recovered_for(source: Source, options: ExportOptions) -> None:
    """Say whether an export holds the values that the checkpoint was recovered for, where it was for some.

    Args:
        source: The checkpoint.
        options: What it is exported as.

    Raises:
        SourceError: Its report is damaged.
    """
    _, report = read_run(source.folder)
    if report is None:
        return
    record, name = report.recovery, source.display_name
    rounded = None if report.compensation is None else report.compensation.rounded_for
    if record is not None and record.recovery_for is not None and record.helped:
        note(_line(record, record.recovery_for, name, options))
    elif rounded is not None and record is None:
        wanted = options.quantization_name.lower()
        note(
            f"{name} was rounded for {rounded}: its nearest values are those that change least of what it computes"
            if wanted == rounded
            else f"warning: {name} was rounded for {rounded}, and this is {wanted}, which loses what {rounded} loses "
            f"and more; export {rounded}, or cut it without --compensation-for"
        )


def trained_types(source: Source) -> Mapping[str, str] | None:
    """Return the types of matrices that a checkpoint was recovered for, by their names; None where it was for none.

    Args:
        source: The checkpoint.

    Raises:
        SourceError: Its report is damaged.
    """
    _, report = read_run(source.folder)
    record = None if report is None else report.recovery
    return None if record is None or not record.helped else record.types


def _line(record: RecoveryRecord, trained: str, name: str, options: ExportOptions) -> str:
    wanted = options.quantization_name.lower()
    known = f"the held-out loss was {record.held_out_loss:.4f} in {trained}"
    if wanted == trained and options.rounding == CALIBRATED_ROUNDING:
        return (
            f"warning: {name} was recovered for {trained} with its nearest values ({known}), and --rounding "
            "calibrated gives it others, which were not trained; leave --rounding out"
        )
    if wanted == trained and _has_own_layout(options):
        return (
            f"warning: {name} was recovered for {trained} in groups of {GROUP_SIZES[0]} in every layer ({known}), and "
            "this export has others, which were not trained; leave out --group-size, --keep-layers and --analysis"
        )
    if wanted == trained:
        return f"{name} was recovered for {trained}: the nearest values are kept, which the training read ({known})"
    if record.held_out_loss_stored is not None:
        known += f", and {record.held_out_loss_stored:.4f} before weights were quantised"
    return (
        f"warning: {name} was recovered for {trained}, and this is {wanted}: {known}; expect to lose what the "
        f"training gained for {trained}. Export {trained}, or recover it with --recovery-for {wanted}"
    )


def _has_own_layout(options: ExportOptions) -> bool:
    """Whether linear layers are grouped or left out otherwise than by default."""
    groups = options.group_size not in (None, GROUP_SIZES[0])
    return groups or bool(options.keep_layers) or options.analysis is not None
