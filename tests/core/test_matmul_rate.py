from __future__ import annotations

import pytest
import torch

from optimum_ishrink.core import matmul_rate
from optimum_ishrink.core.matmul_rate import median_seconds

CPU = torch.device("cpu")


def test_the_rate_is_operations_over_the_median_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_rate, "_SIDE", {"cpu": 8})
    state = torch.random.get_rng_state()
    monkeypatch.setattr(matmul_rate, "median_seconds", lambda run, device, least: run().shape == (8, 8) and 0.5)
    assert matmul_rate.matmul_rate(CPU, torch.bfloat16) == 2 * 8**3 / 0.5
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_call_runs_once_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 11.0, 20.0, 23.0, 30.0, 32.0])
    monkeypatch.setattr(matmul_rate.time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert median_seconds(lambda: calls.append(1), CPU, 5.0) == 2.0
    assert len(calls) == 4
