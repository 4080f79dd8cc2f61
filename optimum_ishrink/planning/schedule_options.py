"""The option that cuts and recovers in turn."""

from __future__ import annotations

from dataclasses import dataclass

from ..options.base import Options
from ..options.option import option
from .schedule_names import CUT, CUTS, RECOVER, parse_schedule


@dataclass(frozen=True, kw_only=True, repr=False)
class ScheduleOptions(Options):
    """In which order a model is cut, and when it is recovered in between."""

    schedule: str | None = option(
        None,
        metavar="STAGE[,STAGE...]",
        check=parse_schedule,
        help=f"cut and recover in turn: {', '.join(CUTS)}, {CUT} (all that no other stage names) and {RECOVER}; "
        "3x(cut,recover) in three steps",
        doc="Cuts and recoveries in turn, such as `width,recover,depth,recover`: `width` (MLP neurons), `depth` "
        "(layers), `heads` (KV groups and query heads), `experts`, `vocabulary`, `cut` (all that no other stage "
        "names) and `recover`. A stage that is named several times goes its way in as many equal steps, and "
        "`3x(cut,recover)` is `cut,recover` three times. The shape at the end is that of the same request without a "
        "schedule, and the recoveries share the tokens of `recovery_tokens`.",
        default_help="one cut, then recovery",
    )
