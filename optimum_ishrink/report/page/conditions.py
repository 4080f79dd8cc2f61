"""Under which conditions a figure was measured: figures of different ones do not belong into one column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..measurement import Measurement
from ..report import ModelReport, Report

Conditions = tuple[tuple[str, Any], ...]
"""Names and values, sorted; equal for figures that can be compared."""

RELATIVE = {"kl_divergence": 0.0, "top1_agreement": 1.0}
"""Metrics that compare with the base, and what the base scores against itself by definition."""

_NOT_CONDITIONS = frozenset({"rounds", "warmup", "self_spread", "statistic", "hub_dataset"})
"""Settings that say how sure a figure is, what came out, or where data are from, not what was measured."""

_MACHINE = ("device", "accelerator", "cpu", "cores", "usable_cores", "governor", "threads", "os")
_SPEED_VERSIONS = ("torch", "transformers")


def conditions(measurement: Measurement, part: str, report: Report) -> Conditions:
    """Return what must be equal for two figures of the same metric and data to be comparable.

    For quality: the settings (text, length, seed, shots, task version), how many windows or questions, the dtype, and
    for what compares with the base, the base. For speed: the settings, the machine, the dtype, and the versions that
    do the computing.

    Args:
        measurement: The figure.
        part: `quality` or `speed`.
        report: The report that it is in.
    """
    found: dict[str, Any] = {
        key: value
        for key, value in measurement.settings.items()
        if key not in _NOT_CONDITIONS and (value is None or isinstance(value, (str, int, float, bool)))
    }
    # What was added to a report later may have been measured somewhere else, and says so.
    environment = measurement.settings.get("environment", report.environment)
    found["dtype"] = environment.get("dtype")
    if part == "quality":
        found["n"] = measurement.n
        if measurement.metric in RELATIVE:
            found["base"] = identity(report.base)
    else:
        found |= {key: environment.get(key) for key in _MACHINE}
        versions = environment.get("versions")
        if isinstance(versions, Mapping):
            found |= {key: versions.get(key) for key in _SPEED_VERSIONS}
    return tuple(sorted(found.items()))


def identity(model: ModelReport | None) -> str:
    """Name a model so that two of the same name and another size are told apart."""
    return "none" if model is None else f"{model.name}, {model.params:,} parameters"


def differences(all_conditions: Iterable[Conditions]) -> dict[Conditions, str]:
    """Say of each of several conditions what is different in them.

    Args:
        all_conditions: Conditions of figures of the same metric and data.

    Returns:
        A text for each, empty where there is one alone.
    """
    tables = {each: dict(each) for each in all_conditions}
    names = sorted({name for table in tables.values() for name in table})
    differing = [name for name in names if len({repr(table.get(name)) for table in tables.values()}) > 1]
    # What was counted follows from what was set.
    if len(differing) > 1:
        differing = [name for name in differing if name not in ("tokens", "bytes")] or differing
    return {each: ", ".join(_say(name, table.get(name)) for name in differing) for each, table in tables.items()}


def _say(name: str, value: Any) -> str:
    text = "unknown" if value is None else str(value)
    if name == "fingerprint":
        return f"text {text[:8]}"
    return f"{name.replace('_', ' ')} {text}"
