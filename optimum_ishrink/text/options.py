"""Options of calibration text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..options.offload import OffloadOptions
from ..options.option import option

SOURCES = "self (sampled from the model), FILE.txt, FILE.jsonl, or a Hub data set id[:config[:split[:column]]]"
"""What a text source can be, for `--help`."""


@dataclass(frozen=True, kw_only=True, repr=False)
class CalibrationOptions(OffloadOptions):
    """The calibration text."""

    calibration: Sequence[str] = option(
        ("self",),
        metavar="SRC[,SRC...]",
        path="text",
        help=f"text to calibrate on: {SOURCES}",
        doc="Text sources to calibrate on, mixed in equal shares: `self` (sampled from the model), a .txt or .jsonl "
        "file, or a Hub data set. `self` is the default because it needs neither data nor a network. The rows of a "
        ".jsonl file may have an `image` each, for the decoder of a vision-language model.",
    )
    calibration_samples: int = option(64, metavar="N", help="windows of calibration text")
    calibration_length: int = option(256, ge=2, metavar="N", help="tokens in each calibration window")
