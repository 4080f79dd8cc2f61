"""More than one process, as `torchrun` starts them: each scores its share of the text, and all learn the sums.

With one process nothing here touches `torch.distributed`. The command line asks here who speaks, so torch is imported
only where it is needed.
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
    """Return how many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Return this process' number, from 0."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return process_index() == 0


def connect(device: torch.device) -> torch.device:
    """Join the other processes, and return the device that is this one's.

    Args:
        device: The device of the run; with CUDA every process of a machine takes another one.
    """
    if process_count() == 1:
        return device
    import torch
    from accelerate import PartialState

    # Others wait for as long as one process samples, cuts and measures alone.
    state = PartialState(cpu=device.type == "cpu", timeout=timedelta(days=1))
    return torch.device(state.device)


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """Return every n-th item, for n processes, beginning with this one's number."""
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
    """Return once all processes are here."""
    if process_count() > 1:
        import torch

        torch.distributed.barrier()


def from_main_process(value: Any) -> Any:
    """Return what the main process has: what it drew or decided holds for all."""
    if process_count() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]
