"""How many windows run at once: as many as memory holds, and half as many whenever it runs out.

What a stage computes is a sum over windows, or one value for each, so it may be divided as memory asks. Where nobody
named a number, a batch on a GPU starts with the number that is right for CPUs; what it takes is measured, and the next
ones are as large as what is free allows. On a CPU more windows at once are no faster, so the number stays.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from ..errors import DeviceMemoryError
from .processes import process_count
from .progress import note

FREE_SHARE = 0.8
"""Share of the free memory that a batch may take: the rest is for what differs from batch to batch, and for memory
that is free, but in pieces."""

Result = TypeVar("Result")


def ran_out(error: BaseException) -> bool:
    """Return whether an error says that a device, or this process, has no memory left.

    Args:
        error: The error.
    """
    return isinstance(error, Exception) and should_reduce_batch_size(error)


def is_measured(device: torch.device) -> bool:
    """Return whether torch counts what is allocated on a device."""
    return device.type == "cuda"


def free_bytes(device: torch.device) -> int:
    """Return what a CUDA device can still hold: what no process has, and what this one has and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _start_measuring(device: torch.device) -> int:
    """Return the bytes that are allocated; from here on `_most_taken` counts."""
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def _most_taken(device: torch.device) -> int:
    return int(torch.cuda.max_memory_allocated(device))


class MicroBatch:
    """The number of windows that run at once in one stage.

    Args:
        size: Windows to begin with.
        device: Where they run.
        what: What runs, in the words of a message, such as `recovery`.
        remedy: What the user can do where one window does not fit, in the words of a message.
        most: Windows at once at most, where the number may grow with free memory; None where it may not, because the
            user named it, or it is part of what is computed.
        unit: What is counted.
        in_step: Whether all processes run each batch together, so that one of several cannot go back alone.
    """

    def __init__(
        self,
        size: int,
        device: torch.device,
        *,
        what: str,
        remedy: str,
        most: int | None = None,
        unit: str = "windows",
        in_step: bool = False,
    ) -> None:
        self.size = size
        self.device = device
        self.what, self.remedy, self.unit = what, remedy, unit
        self._in_step = in_step
        self._most: int | None = None
        self._fixed = 0
        if most is not None:
            self.let_grow(most)

    def let_grow(self, most: int, fixed: int = 0) -> None:
        """Measure the next batch, and let those after it be as large as memory allows; on a CPU nothing changes.

        Args:
            most: Windows at once at most.
            fixed: Bytes that a batch takes however many windows it has, and still holds when it ends.
        """
        if is_measured(self.device):
            self._most, self._fixed = most, fixed

    def each(
        self, count: int, run: Callable[[slice], Result], *, undo: Callable[[], None] | None = None
    ) -> Iterator[Result]:
        """Run windows in order, part by part, and yield what each part gives.

        Where memory runs out, the part that failed is run again with fewer windows, and no other.

        Args:
            count: How many windows there are.
            run: Runs those of a slice.
            undo: Removes what a part that failed has left behind; None where it leaves nothing.

        Raises:
            DeviceMemoryError: One window does not fit.
        """
        start = 0
        while start < count:

            def part(size: int, start: int = start) -> tuple[int, Result]:
                stop = min(start + size, count)
                return stop, run(slice(start, stop))

            start, found = self.whole(part, undo=undo, at_most=count - start)
            yield found

    def whole(
        self,
        run: Callable[[int], Result],
        *,
        undo: Callable[[], None] | None = None,
        at_most: int | None = None,
        at_least: int = 1,
    ) -> Result:
        """Run something that takes the number of windows at once; where memory runs out, again with fewer.

        Args:
            run: Takes the number of windows.
            undo: Removes what a run that failed has left behind; None where it leaves nothing.
            at_most: Windows that there are.
            at_least: With fewer than this, the same would be run.

        Raises:
            DeviceMemoryError: One window does not fit.
        """
        while True:
            before = None if self._most is None else _start_measuring(self.device)
            try:
                found = run(self.size)
            except RuntimeError as error:
                self._reduce(error, at_most, at_least)
            else:
                if before is not None:
                    self._grow(_most_taken(self.device) - before, min(self.size, at_most or self.size))
                return found
            # Not in the handler: until it ends, the error holds all that was computed.
            if undo is not None:
                undo()
            gc.collect()
            if is_measured(self.device):
                torch.cuda.empty_cache()

    def _reduce(self, error: RuntimeError, at_most: int | None, at_least: int) -> None:
        """Halve the number of windows, and say so.

        Raises:
            DeviceMemoryError: It was one, or other processes wait for this one.
            RuntimeError: The error itself, which is another.
        """
        if not ran_out(error):
            raise error
        tried = self.size if at_most is None else min(self.size, at_most)
        if tried <= at_least:
            least = f"one {self.unit.removesuffix('s')} at a time"
            if at_least > 1:
                least = f"{tried:,} {self.unit} at once, and fewer cannot be run"
            raise DeviceMemoryError(
                f"{self.what} ran out of memory on {self.device} with {least}; {self.remedy}"
            ) from None
        if self._in_step and process_count() > 1:
            raise DeviceMemoryError(
                f"{self.what} ran out of memory on {self.device} with {tried} {self.unit} at once in each of "
                f"{process_count()} processes, and one of several cannot go back alone; "
                f"set --batch-size to {tried // 2} or less"
            ) from None
        self.size, self._most = tried // 2, None
        note(f"{self.what}: out of memory with {tried} {self.unit} at once; it goes on with {self.size}")

    def _grow(self, taken: int, windows: int) -> None:
        """Let the next batches be as large as memory allows, once it is known what one takes."""
        assert self._most is not None
        each = (taken - self._fixed) / windows
        fitting = self._most if each <= 0 else int(free_bytes(self.device) * FREE_SHARE // each)
        grown = max(self.size, min(self._most, fitting))
        if grown > self.size:
            note(f"{self.what}: {grown} {self.unit} at once fit into free memory (--batch-size sets a number)")
        self.size, self._most = grown, None
