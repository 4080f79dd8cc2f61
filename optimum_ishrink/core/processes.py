"""Several processes, as `torchrun` starts them: each works on its share, and sums are shared with all.

With one process nothing here touches `torch.distributed`. The command line uses this module to find the process that
prints, so torch is imported only where it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


def process_count() -> int:
    """Return the number of processes that share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Return this process's number, from 0."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return process_index() == 0


def connect(device: torch.device) -> torch.device:
    """Join the other processes, and return the device of this one.

    Args:
        device: The device of the run; with CUDA, each process of a machine gets a different one.
    """
    if process_count() == 1:
        return device
    import torch
    from accelerate import PartialState

    # The others wait while one process samples, cuts and measures alone.
    state = PartialState(cpu=device.type == "cpu", timeout=timedelta(days=1))
    return torch.device(state.device)


def process_share(items: Sequence[Item]) -> Sequence[Item]:
    """Return this process's share of the items: every n-th for n processes, starting at this one's number."""
    return items[process_index() :: process_count()]


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes."""
    if process_count() > 1:
        import torch

        torch.distributed.all_reduce(tensor)
    return tensor


def summed_count(count: int, device: torch.device) -> int:
    """Return the sum of a number over all processes."""
    if process_count() == 1:
        return count
    import torch

    return int(summed(torch.tensor(count, device=device)))


def wait_for_all() -> None:
    """Wait until all processes have reached this call."""
    if process_count() > 1:
        import torch

        torch.distributed.barrier()


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """Return the main process's tensor in every process; in the others, one of the same shape is overwritten."""
    if process_count() > 1:
        import torch

        torch.distributed.broadcast(tensor, 0)
    return tensor


def from_main_process(value: Any) -> Any:
    """Return the main process's value in every process."""
    if process_count() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]
