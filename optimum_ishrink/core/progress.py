"""Progress bars and notes on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .processes import is_main_process


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar with the remaining time while the block runs, and yield the function that advances it.

    It writes to standard error, so that standard output has only results. Where that is not a terminal, it writes one
    line at the end.

    Args:
        description: What is being done.
        total: Number of steps.
    """
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not is_main_process()) as progress:
        task = progress.add_task(description, total=total)
        yield lambda steps: progress.advance(task, steps)


@contextmanager
def byte_bar(description: str, nbytes: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of megabytes while the block runs, and yield the function that takes how many bytes are done.

    Args:
        description: What is being done.
        nbytes: Bytes in all.
    """
    megabyte, pending = 10**6, 0
    with progress_bar(f"{description} (MB)", nbytes // megabyte) as advance:

        def done(count: int) -> None:
            nonlocal pending
            pending += count
            advance(pending // megabyte)
            pending %= megabyte

        yield done


def note(text: str) -> None:
    """Print one line on standard error about work that has no bar."""
    if is_main_process():
        sys.stderr.write(text + "\n")


@contextmanager
def training_bar(description: str, total: int, done: int) -> Iterator[Callable[[int, str], None]]:
    """Show a bar for training steps, and yield the function that sets the step and the note next to it.

    Args:
        description: What is being done.
        total: Number of steps.
        done: Steps completed before.
    """
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not is_main_process()) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")
        yield lambda step, note: progress.update(task, completed=step, note=note)
