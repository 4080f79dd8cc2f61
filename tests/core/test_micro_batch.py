"""Windows at once: halved where memory runs out, and grown where a device has room."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from optimum_ishrink import DeviceMemoryError
from optimum_ishrink.core import micro_batch
from optimum_ishrink.core.micro_batch import MicroBatch, ran_out

CPU = torch.device("cpu")
OUT = "CUDA out of memory. Tried to allocate 2.00 GiB."


def a_batch(size: int, most: int | None = None, *, in_step: bool = False) -> MicroBatch:
    return MicroBatch(size, CPU, what="scoring", remedy="shorten the windows", most=most, in_step=in_step)


def holding(windows: int, seen: list[slice]) -> Callable[[slice], int]:
    """A run that holds this many windows at most, and returns how many it was given."""

    def run(part: slice) -> int:
        count = part.stop - part.start
        if count > windows:
            raise torch.cuda.OutOfMemoryError(OUT)
        seen.append(part)
        return count

    return run


def test_what_is_out_of_memory() -> None:
    assert ran_out(torch.cuda.OutOfMemoryError(OUT))
    assert ran_out(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"))
    assert not ran_out(RuntimeError("shapes do not match"))
    assert not ran_out(KeyboardInterrupt())


def test_parts_are_in_order_and_the_last_one_is_smaller() -> None:
    seen: list[slice] = []
    assert list(a_batch(4).each(10, holding(4, seen))) == [4, 4, 2]
    assert seen == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert list(a_batch(4).each(0, holding(4, seen))) == []


def test_only_the_part_that_failed_is_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[slice] = []
    undone: list[int] = []
    batch = a_batch(8)
    first = True

    def run(part: slice) -> int:
        nonlocal first
        if part.start == 8 and first:
            first = False
            raise torch.cuda.OutOfMemoryError(OUT)
        seen.append(part)
        return part.stop - part.start

    assert list(batch.each(20, run, undo=lambda: undone.append(1))) == [8, 4, 4, 4]
    assert seen == [slice(0, 8), slice(8, 12), slice(12, 16), slice(16, 20)]
    assert undone == [1]
    assert batch.size == 4
    assert capsys.readouterr().err == "scoring: out of memory with 8 windows at once; it goes on with 4\n"


def test_what_was_tried_is_halved_and_not_what_was_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    batch = a_batch(64)
    assert list(batch.each(6, holding(2, []))) == [1] * 6  # 6, then 3, then 1
    assert "out of memory with 6 windows at once; it goes on with 3" in capsys.readouterr().err
    assert batch.size == 1


def test_one_window_that_does_not_fit_is_one_line() -> None:
    expected = "scoring ran out of memory on cpu with one window at a time; shorten the windows$"
    with pytest.raises(DeviceMemoryError, match=expected):
        list(a_batch(2).each(4, holding(0, [])))


def test_one_of_several_processes_cannot_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "process_count", lambda: 2)
    expected = "with 4 windows at once in each of 2 processes, .* set --batch-size to 2 or less"
    with pytest.raises(DeviceMemoryError, match=expected):
        list(a_batch(4, in_step=True).each(4, holding(2, [])))
    assert list(a_batch(4).each(4, holding(2, []))) == [2, 2]  # where each process works by itself


def test_other_errors_are_not_caught() -> None:
    def run(_: slice) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(a_batch(4).each(4, run))


def measured(monkeypatch: pytest.MonkeyPatch, *, each: int, fixed: int, free: int) -> None:
    """Pretend that torch counts what this device holds: `fixed` bytes and `each` for every window of a batch of 4."""
    monkeypatch.setattr(micro_batch, "is_measured", lambda device: True)
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: free)
    monkeypatch.setattr(micro_batch, "_start_measuring", lambda device: 1000)
    monkeypatch.setattr(micro_batch, "_most_taken", lambda device: 1000 + fixed + 4 * each)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def test_it_grows_to_what_memory_allows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measured(monkeypatch, each=100, fixed=0, free=2500)
    batch = a_batch(4, most=1000)
    assert list(batch.each(50, holding(99, []))) == [4, 20, 20, 6]
    assert capsys.readouterr().err.startswith("scoring: 20 windows at once fit into free memory (--batch-size ")


def test_it_grows_no_further_than_there_are_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, each=0, fixed=0, free=10**9)
    batch = a_batch(4, most=16)
    assert list(batch.each(40, holding(99, []))) == [4, 16, 16, 4]


def test_what_does_not_depend_on_the_windows_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, each=100, fixed=5000, free=2500)
    batch = a_batch(4)
    assert list(batch.each(4, holding(99, []))) == [4]
    batch.let_grow(1000, fixed=5000)
    assert list(batch.each(24, holding(99, []))) == [4, 20]


def test_it_never_grows_below_what_it_was_nor_after_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, each=1000, fixed=0, free=100)
    assert list(a_batch(4, most=100).each(8, holding(99, []))) == [4, 4]
    measured(monkeypatch, each=1, fixed=0, free=10**6)
    assert list(a_batch(4, most=100).each(8, holding(2, []))) == [2, 2, 2, 2]


def test_on_a_cpu_the_number_stays() -> None:
    assert list(a_batch(4, most=1000).each(12, holding(99, []))) == [4, 4, 4]
