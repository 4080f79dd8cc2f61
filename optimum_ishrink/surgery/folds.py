"""Parts of the calibration text that are held out in turn to choose a ridge."""

from __future__ import annotations

import torch

from ..errors import DataError

FOLDS = 4
"""Number of parts: one for each source of the text, or a quarter each."""


def check_windows(
    count: int, *, least: int = FOLDS, samples: str = "calibration_samples", off: str = "compensation='none'"
) -> None:
    """Check that there are enough calibration windows to hold some out.

    Args:
        count: Number of windows.
        least: Number of processes that share them, each of which needs one.
        samples: The option that sets their number, for the message.
        off: The option that turns compensation off, for the message.

    Raises:
        DataError: There are fewer than `FOLDS`, or than processes.
    """
    least = max(least, FOLDS)
    if count < least:
        raise DataError(
            f"compensation needs at least {least} calibration windows, not {count}; raise {samples}, or "
            f"turn it off with {off}"
        )


def make_folds(count: int, kinds: torch.Tensor | None) -> list[torch.Tensor]:
    """Return the indices of the windows in parts that are held out in turn.

    Args:
        count: Number of windows.
        kinds: The source of each window, or None. More sources than `FOLDS` share a fold.
    """
    several = kinds is not None and bool((kinds != kinds[0]).any())
    number = kinds % FOLDS if kinds is not None and several else torch.arange(count) % FOLDS
    found = [(number == fold).nonzero().flatten() for fold in range(FOLDS)]
    return [rows for rows in found if len(rows)]
