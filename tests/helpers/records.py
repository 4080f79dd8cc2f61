"""Small records for tests that do not depend on their values."""

from __future__ import annotations

from typing import Any

from optimum_ishrink.report.environment import Environment
from optimum_ishrink.report.measurement import SpeedComparison


def make_environment(**changes: Any) -> Environment:
    values: dict[str, Any] = {
        "device": "cpu",
        "cpu": "A processor",
        "threads": 2,
        "dtype": "bfloat16",
        "os": "Linux",
        "python": "3.11.7",
        "versions": {"torch": "2.13", "transformers": "5.23", "optimum-ishrink": "0.1"},
    }
    return Environment(**{**values, **changes})


def compare_speed(ratio: float, verdict: str = "faster") -> SpeedComparison:
    interval = (ratio - 0.02, ratio + 0.02)
    return SpeedComparison(ratio, interval, 0.99, 0.001, 0.003, 0.01, verdict, (ratio,) * 11, (1.0,) * 11)
