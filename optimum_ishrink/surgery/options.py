"""Options of compensation: the closed-form repair after the cut."""

from __future__ import annotations

from dataclasses import dataclass

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
