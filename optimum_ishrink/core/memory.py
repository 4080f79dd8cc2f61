"""How much memory this process can still take: what the machine has free, and what its control group allows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows control groups."""

_UNLIMITED = 2**60
"""Version 1 writes a number near 2**63 where there is no limit."""


def free_memory(groups: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes that can still be taken without swapping, or being killed by a container's limit.

    Args:
        groups: Where control groups are.
        own: The file that names those of this process.
    """
    free = int(psutil.virtual_memory().available)
    return min([free, *(limit for folder in _folders(groups, own) if (limit := _left(folder)) is not None)])


def free_on(device: torch.device) -> int:
    """Return the bytes that are free on a device: on CUDA of its own memory, else as `free_memory` has it.

    Args:
        device: The device.
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


def _folders(groups: Path, own: Path) -> list[Path]:
    """Return the control groups that this process is in, with those around them."""
    found = [groups, groups / "memory"]
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        base = groups if number == "0" else groups / "memory" if "memory" in controllers.split(",") else None
        parts = Path(path.lstrip("/"))
        if base is not None:
            found += [base / part for part in (parts, *parts.parents)]
    return found


def _left(folder: Path) -> int | None:
    """Return what a control group has left; None where it has no limit. Cached files are given back when needed."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, taken = _number(folder / limit), _number(folder / used)
        if most is not None and taken is not None and most < _UNLIMITED:
            return max(0, most - taken + _entry(folder / "memory.stat", cached))
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such group, or no limit: "max"
        return None


def _entry(path: Path, name: str) -> int:
    try:
        words = path.read_text(encoding="utf-8").split()
        return int(words[words.index(name) + 1])
    except (OSError, ValueError, IndexError):
        return 0
