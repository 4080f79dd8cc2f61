from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.search.turns import (
    Workload,
    fit_together,
    llama_cpp_figures,
    llama_cpp_requests,
    settle,
    take_turns,
)

STARTED: list[str] = []


class Process:
    """Takes a second longer with every turn of any process."""

    asked = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.first = {"build": "b1", "memory_before_bytes": 100}

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        Process.asked += 1
        answer = {"first": float(Process.asked), "decode": 1 / Process.asked, "peak_memory_bytes": 1100}
        return {**answer, "processor": {"first": 0.5, "decode": 8.0}}


@contextmanager
def start(request: Mapping[str, Any]) -> Iterator[Process]:
    STARTED.append(Path(request["model"]).name)
    yield Process(request["model"])


def turns(tmp_path: Path, *, threads: int, together: bool) -> Any:
    STARTED.clear()
    Process.asked = 0
    files = {name: tmp_path / name for name in "abc"}
    workload = Workload(prompt=8, new_tokens=2, context=4)
    return take_turns(
        llama_cpp_requests(files, workload, threads=threads, vocabulary=9),
        workload.prompt,
        rounds=2,
        together=together,
        start=start,
        figures=llama_cpp_figures(threads),
        advance=lambda _: None,
    )


def test_files_take_turns_in_alternating_order(tmp_path: Path) -> None:
    found, build = turns(tmp_path, threads=2, together=True)
    assert build == "b1" and STARTED == ["a", "b", "c"]
    assert [[each["ttft"] for each in found[name]] for name in "abc"] == [[1, 6], [2, 5], [3, 4]]
    turns(tmp_path, threads=2, together=False)
    assert STARTED == ["a", "b", "c", "c", "b", "a"]


def test_with_one_thread_what_others_compute_does_not_count(tmp_path: Path) -> None:
    found, _ = turns(tmp_path, threads=1, together=True)
    assert found["a"] == [{"decode": 8.0, "ttft": 0.5, "memory": 1000.0}] * 2


def test_the_lower_quartile_of_times_counts() -> None:
    of = [{"decode": 1 / time, "ttft": float(time), "memory": float(time)} for time in (5, 1, 4, 2, 3)]
    assert settle({"a": of}) == {"a": {"decode": 1 / 2, "ttft": 2.0, "memory": 3.0}}
    assert settle({"a": of[:1]})["a"]["ttft"] == 5.0
    assert "memory" not in settle({"a": [*of, {"decode": 1.0, "ttft": 1.0}]})["a"]


@pytest.mark.parametrize(("available", "fits"), [(None, False), (2**27, False), (2**29, True)])
def test_files_fit_together_where_memory_is_known(tmp_path: Path, available: int | None, fits: bool) -> None:
    (tmp_path / "a").write_bytes(bytes(10_000))
    assert fit_together({"a": tmp_path / "a"}, available) is fits
