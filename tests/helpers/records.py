"""Small records for tests that do not depend on their values."""

from __future__ import annotations

from typing import Any

from optimum_ishrink.report.environment import Environment
from optimum_ishrink.report.measurement import SpeedComparison
from optimum_ishrink.report.recovery import RecoveryRecord


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


def make_recovery(**changes: Any) -> RecoveryRecord:
    values: dict[str, Any] = {
        "loss": "kl",
        "trained": "lora",
        "trained_parameters": 9,
        "learning_rate": 1e-3,
        "steps": 4,
        "planned_steps": 4,
        "best_step": 2,
        "tokens": 64,
        "held_out_windows": 2,
        "held_out_loss_before": 1.0,
        "held_out_loss": 0.5,
        "held_out_losses": ((2, 0.5), (4, 0.6)),
        "seconds": 1.5,
        "tokens_per_second": 40.0,
        "resumed_from_step": None,
        "processes": 1,
        "data": ("self",),
        "fingerprints": (None,),
    }
    return RecoveryRecord(**{**values, **changes})
