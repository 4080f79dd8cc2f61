"""The speeds of this machine that an estimate needs: matrix products, memory and disk, measured in a few seconds."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.durable import disk_errors
from ..core.matmul_rate import median_seconds
from ..text.sources import SAMPLED_TOGETHER

if TYPE_CHECKING:
    import torch

_SECONDS = 0.4
"""For so long each speed is measured at least, after one run that is not counted."""
_ROWS = 1024
"""Tokens of a product: the default batch of four windows of 256."""
_FILE = 128 * 2**20
"""Bytes that the disk is measured with: enough for a steady rate, written in under a second by most disks."""


@dataclass(frozen=True)
class MachineSpeed:
    """Speeds of a machine.

    Args:
        operations: Floating-point operations per second of matrix products in the compute dtype.
        float32_operations: The same in float32.
        memory: Bytes of weights read per second by the thin products of sampling, one row for each window.
        disk_read: Bytes read per second.
        disk_write: Bytes written per second, until they are on the disk.
    """

    operations: float
    float32_operations: float
    memory: float
    disk_read: float
    disk_write: float


def measure_speed(device: torch.device, dtype: torch.dtype, width: int, inner: int, folder: Path) -> MachineSpeed:
    """Measure the speeds of this machine.

    Args:
        device: The device that computes.
        dtype: The dtype that it computes in.
        width: Hidden size of the model: products are measured at its own shapes, since small ones are slower.
        inner: Neurons of its MLPs.
        folder: A folder on the disk that will be written.

    Raises:
        OutputError: The folder cannot be written.
    """
    import torch

    # More of the same takes longer and tells nothing new.
    width, inner = min(width, 8192), min(inner, 16384)
    weight = torch.randn(inner, width, device=device).to(dtype)
    many = torch.randn(_ROWS, width, device=device).to(dtype)
    seconds = median_seconds(lambda: torch.nn.functional.linear(many, weight), device, _SECONDS)
    operations = 2 * _ROWS * width * inner / seconds
    single = many.float()[:, : min(width, 2048)].contiguous()
    gram = median_seconds(lambda: single.T @ single, device, _SECONDS)
    # As many matrices in turn as do not fit any cache.
    copies = [weight.clone() for _ in range(max(1, 2**28 // (weight.numel() * weight.element_size())))]
    thin = many[:SAMPLED_TOGETHER]

    def read_all() -> None:
        for copy in copies:
            torch.nn.functional.linear(thin, copy)

    size = len(copies) * weight.numel() * weight.element_size()
    memory = size / median_seconds(read_all, device, _SECONDS)
    written, read = _disk(folder)
    return MachineSpeed(operations, 2 * len(single) * single.shape[1] ** 2 / gram, memory, read, written)


def _disk(folder: Path) -> tuple[float, float]:
    """Return the bytes per second that a folder's disk writes and reads."""
    block = os.urandom(2**20)
    with disk_errors(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".ishrink-speed-") as place:
        path = Path(place) / "block"
        start = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(_FILE // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter() - start
        with path.open("rb", buffering=0) as file:
            # What was written is still in memory, where the system can be told to forget it.
            with suppress(AttributeError, OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            while file.read(len(block)):
                pass
            read = time.perf_counter() - start
    return _FILE / written, _FILE / read
