"""The conditions of a measurement: only figures with equal conditions share a column."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .measurement import Measurement

if TYPE_CHECKING:
    from .report import ModelReport, Report

Conditions = tuple[tuple[str, Any], ...]
"""Names and values, sorted; equal for figures that can be compared."""

RELATIVE = {"kl_divergence": 0.0, "top1_agreement": 1.0}
"""Metrics that compare with the base, and what the base scores against itself by definition."""

_PER_BYTE = ("bits_per_byte", "tokens_per_byte")
"""Metrics that can be compared between tokenizers, where the text is the same."""

_MACHINE = ("device", "accelerator", "cpu", "cores", "usable_cores", "governor", "threads", "os")
_SPEED_VERSIONS = ("torch", "transformers")


def conditions(measurement: Measurement, part: str, report: Report) -> Conditions:
    """Return what must be equal for two figures of the same metric and data to be comparable.

    For quality: the settings (text, length, seed, shots, task version), how many windows or questions, the dtype, and
    for comparisons with the base, the base, and whether its predictions were carried to fewer tokens. For speed: the
    settings, the machine, the dtype, and the versions of the compute libraries.

    Args:
        measurement: The figure.
        part: `quality` or `speed`.
        report: The report that holds it.
    """
    # A measurement added later may come from another machine; it then has its own environment.
    environment = measurement.environment or report.environment
    found: dict[str, Any] = {**measurement.conditions, "dtype": environment.dtype}
    if part == "quality":
        found["n"] = measurement.n
        if measurement.metric in _PER_BYTE or measurement.carried:
            found.pop("tokens", None)  # that another vocabulary splits the same text otherwise makes no difference
        if measurement.metric in RELATIVE:
            found["base"] = identity(report.base)
    else:
        found |= {name: getattr(environment, name) for name in _MACHINE}
        found |= {name: environment.versions.get(name) for name in _SPEED_VERSIONS}
    return tuple(sorted(found.items()))


def identity(model: ModelReport | None) -> str:
    """Return a name for a model that distinguishes two of the same name and different sizes."""
    return "none" if model is None else f"{model.name}, {model.params:,} parameters"


def differences(all_conditions: Iterable[Conditions]) -> dict[Conditions, str]:
    """Describe how several sets of conditions differ.

    Args:
        all_conditions: Conditions of figures of the same metric and data.

    Returns:
        A description of each, empty where there is only one.
    """
    tables = {each: dict(each) for each in all_conditions}
    names = sorted({name for table in tables.values() for name in table})
    differing = [name for name in names if len({repr(table.get(name)) for table in tables.values()}) > 1]
    # Counts follow from the settings, so they say nothing new.
    if len(differing) > 1:
        differing = [name for name in differing if name not in ("tokens", "bytes")] or differing
    return {each: ", ".join(_describe(name, table.get(name)) for name in differing) for each, table in tables.items()}


def _describe(name: str, value: Any) -> str:
    if name == "carried":
        return "carried to fewer tokens" if value else "the same tokens"
    text = "unknown" if value is None else str(value)
    if name == "fingerprint":
        return f"text {text[:8]}"
    return f"{name.replace('_', ' ')} {text}"
