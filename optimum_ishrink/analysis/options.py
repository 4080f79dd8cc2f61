"""Options of the analysis: what is measured, and on how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RequestError
from ..options.base import Options
from ..options.option import option
from ..text.options import SOURCES

LEVELS = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0)
"""Sparsities in percent, as in the iShrink thesis."""


@dataclass(frozen=True, kw_only=True, repr=False)
class AnalysisOptions(Options):
    """What an analysis measures, and on how much."""

    KIND = "option"

    levels: Sequence[float] = option(
        LEVELS,
        ge=0,
        le=50,
        metavar="P[,P...]",
        help="sparsities in percent",
        doc="Sparsities in percent, from 0 to 50. 0, the whole model, is always one of them. The default is that of "
        "the iShrink thesis.",
        default_help="0,5,10,...,50",
    )
    analysis_samples: int = option(
        8,
        metavar="N",
        help="windows to measure on",
        doc="Windows to measure on. Few by default: an analysis makes over a hundred measurements and compares them "
        "with one another on the same windows, so that differences show long before the figures themselves are "
        "precise.",
    )
    analysis_length: int = option(256, ge=2, metavar="N", help="tokens in each window that is measured on")
    analysis_text: Sequence[str] | None = option(
        None,
        metavar="SRC[,SRC...]",
        path="text",
        help=f"text to measure on: {SOURCES}",
        doc="Text sources to measure on. By default further windows of the calibration's sources, which no score was "
        "computed on.",
        default_help="further windows of the calibration text",
    )
    max_divergence: float = option(
        0.5,
        gt=0,
        metavar="X",
        help="KL divergence in nats/token that the advice stays below",
        doc="KL divergence in nats per token that the advice stays below. Cuts of SmolLM2-135M-Instruct that cost "
        "0.6 to 0.8 came down to about half of that by compensation alone: so 0.5 leaves a model that can be "
        "repaired.",
    )

    def check_together(self) -> None:
        """Check that a level is above 0.

        Raises:
            RequestError: None is.
        """
        if not any(self.levels):
            raise RequestError("levels must hold one above 0, such as 0,10,25")

    @property
    def percentages(self) -> tuple[float, ...]:
        """The levels in percent, ascending, 0 the first."""
        return tuple(sorted({0.0, *map(float, self.levels)}))

    @property
    def shares(self) -> tuple[float, ...]:
        """The levels as shares between 0 and 1, ascending, 0 the first."""
        return tuple(level / 100 for level in self.percentages)
