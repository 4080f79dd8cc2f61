"""Options of compensation: the closed-form repair after the cut."""

from __future__ import annotations

from dataclasses import dataclass

from ..options.gguf_types import PLAIN_TYPES
from ..options.option import option
from ..report.compensation import COMPENSATIONS
from ..text.options import CalibrationOptions


@dataclass(frozen=True, kw_only=True, repr=False)
class CompensationOptions(CalibrationOptions):
    """Whether the remaining weights are re-fit after the cut."""

    compensation: str = option(
        "ridge",
        metavar="NAME",
        choices=COMPENSATIONS,
        help="closed-form repair on the calibration text: ridge or none",
        doc="`ridge` re-fits the projections that read what was cut by ridge regression, in closed form, on the "
        "calibration text; `none` leaves them as they were cut. More text, and more kinds of it, give a better "
        "repair.",
    )
    compensation_for: str | None = option(
        None,
        metavar="TYPE",
        choices=PLAIN_TYPES,
        help="after the repair, round weights for this type of GGUF, so that an export of the checkpoint in it "
        f"changes least of what matrices compute: {', '.join(PLAIN_TYPES)}",
        doc="After the repair, round weights for this type of GGUF: the nearest values of the checkpoint in this type "
        "are then those that change least of what matrices compute on the calibration text. The checkpoint remains "
        "one of 16 bits. With recovery, `recovery_for` does so.",
        label="type to round for",
    )
