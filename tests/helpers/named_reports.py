"""Reports of made-up figures, for the page that compares them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from optimum_ishrink.report.measurement import Measurement
from optimum_ishrink.report.page.reading import NamedReport
from optimum_ishrink.report.report import ModelReport, Report
from tests.helpers.records import make_environment

MACHINE = make_environment(cpu="A", versions={"torch": "2", "numpy": "1"})
DECODE = "decode_tokens_per_second"


def text(metric: str, value: float, **settings: Any) -> Measurement:
    settings = {"length": 512, "seed": 0, "fingerprint": "ab" * 16, "tokens": 100, **settings}
    return Measurement(metric, "notes.txt", value, 0.01, settings.pop("n", 32), settings)


def speed(value: float, rounds: int = 11, **settings: Any) -> Measurement:
    how = {"prompt_length": 128, "rounds": rounds, "quartiles": [value * 0.9, value * 1.1], "samples": [value]}
    return Measurement(DECODE, "prompt 128", value, None, rounds, {**how, **settings})


def output(
    label: str,
    params: int,
    quality: tuple[Measurement, ...] = (),
    timed: tuple[float, float] | None = None,
    *,
    base: str | None = "org/base",
    base_quality: tuple[Measurement, ...] = (),
    **machine: Any,
) -> NamedReport:
    old = None
    if base is not None:
        old = ModelReport(base, 1000, 2000, base_quality, (speed(timed[0]),) if timed else ())
    new = ModelReport(label, params, 2 * params, quality, (speed(timed[1]),) if timed else ())
    return NamedReport(label, Report(old, new, replace(MACHINE, **machine)))


def kl(value: float, **settings: Any) -> tuple[Measurement, ...]:
    return (text("kl_divergence", value, **settings),)
