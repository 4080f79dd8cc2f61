"""How fast this device multiplies matrices: the peak that a training is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .device import synchronize

if TYPE_CHECKING:
    import torch

_SIDE = {"cpu": 1024, "cuda": 4096}
"""Side of the square matrices that are multiplied: large enough that more of it is no faster, and 100 MB on a GPU."""


def median_seconds(run: Callable[[], object], device: torch.device, at_least: float) -> float:
    """Return the median time of a call.

    Args:
        run: The call; it runs once before it is timed.
        device: The device that it keeps busy.
        at_least: Seconds for which it is repeated.
    """

    def timed() -> float:
        start = time.perf_counter()
        run()
        synchronize(device)
        return time.perf_counter() - start

    timed()
    times = [timed()]
    while sum(times) < at_least:
        times.append(timed())
    return sorted(times)[len(times) // 2]


def matmul_rate(device: torch.device, dtype: torch.dtype, at_least: float = 0.4) -> float:
    """Return the floating-point operations per second of a product of large square matrices.

    Args:
        device: The device.
        dtype: The dtype of the matrices.
        at_least: Seconds for which it is measured.
    """
    import torch

    side = _SIDE[device.type]
    # Numbers of its own, so that the run's stay as they are; zeros would take less power, and a GPU clock higher.
    own = torch.Generator(device).manual_seed(0)
    one, other = (torch.randn(side, side, device=device, generator=own).to(dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: one @ other, device, at_least)
