"""A device's report as measurements, with every verdict computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..edge.benchmark import Rounds, compare_rounds
from ..report.environment import Environment
from ..report.measurement import Measurement, median_measurement
from ..report.report import ModelReport, Report
from .device_report import METRICS, ROLES, DeviceModel, DeviceReport

TIMED = tuple(metric for metric in METRICS if not metric.endswith("_bytes"))
"""What is tested: sizes need no test."""

_GIB = 2**30


def device_environment(report: DeviceReport) -> Environment:
    """Return the device as the environment of measurements.

    Args:
        report: The device's report.
    """
    device, runtime = report.device, report.runtime
    memory = device.memory_gb
    package, _, version = runtime.package.partition(" ")
    return Environment(
        device=runtime.backend,
        cpu=report.label,
        logical_cores=device.cores,
        threads=runtime.threads,
        memory_bytes=None if memory is None else int(memory * _GIB),
        dtype=_quantizations(report),
        os=device.platform,
        python=None,
        versions={package: version, "optimum-ishrink": report.page.get("version", "")},
        runtime=f"{runtime.name} {runtime.build}",
        browser=device.browser,
    )


def device_measurements(report: DeviceReport) -> dict[str, tuple[Measurement, ...]]:
    """Return the measurements of a device's report by role.

    Both models are compared round by round, as in llama.cpp's benchmark: no verdict of the page is used.

    Args:
        report: The device's report.
    """
    where = _place(report)
    samples: dict[str, dict[tuple[str, str], Sequence[Sequence[float]]]] = {model.role: {} for model in report.models}
    for each in report.samples:
        samples[each.role][each.metric, f"{where}{each.setting}"] = each.values
    found = {}
    for role in ROLES:
        model = report.model(role)
        if model is not None:
            conditions = _conditions(report, model)
            size = Measurement("file_bytes", where, float(model.bytes), None, 1, conditions)
            timed = (
                median_measurement(
                    metric, dataset, [value for turns in rounds for value in turns], conditions, n=len(rounds)
                )
                for (metric, dataset), rounds in sorted(samples[role].items(), key=_order)
            )
            found[role] = (size, *timed)
    if "base" in found:
        compared = compare_rounds(*_timed(samples["base"], samples["shrunk"]))
        found["shrunk"] = tuple(
            each.with_versus_base(compared[each.metric, each.dataset])
            if (each.metric, each.dataset) in compared
            else each
            for each in found["shrunk"]
        )
    return found


def device_evidence(report: DeviceReport, known: Report, base_parameters: int) -> Report:
    """Return a device's report as one that can be merged with a model's.

    Args:
        report: The device's report.
        known: The model's report, whose sizes are those of the checkpoints.
        base_parameters: Parameters of the base, for a model's report without one.
    """
    found = device_measurements(report)
    base = None
    if "base" in found:
        named = report.model("base")
        assert named is not None
        base = known.base or ModelReport(named.name, base_parameters, named.bytes)
        base = ModelReport(base.name, base.params, base.bytes, speed=found["base"])
    shrunk = ModelReport(known.shrunk.name, known.shrunk.params, known.shrunk.bytes, speed=found["shrunk"])
    return Report(base, shrunk, device_environment(report))


def without_device(known: Report, report: DeviceReport) -> Report:
    """Return a model's report without what a device measured with the same types and backend.

    What it measures next replaces all of that: a base that was timed before does not stand beside a model that is
    timed now.

    Args:
        known: The model's report.
        report: The device's new report.
    """
    place = _place(report)

    def rest(model: ModelReport) -> ModelReport:
        return replace(
            model, speed=tuple(each for each in model.speed if not f"{each.dataset}, ".startswith(f"{place}, "))
        )

    return replace(known, base=None if known.base is None else rest(known.base), shrunk=rest(known.shrunk))


def _place(report: DeviceReport) -> str:
    """Return what the settings of all measurements of a device's report begin with."""
    backend = "" if report.runtime.backend == "cpu" else f" on {report.runtime.backend}"
    return f"browser on {report.label}: {_quantizations(report)}{backend}"


def _quantizations(report: DeviceReport) -> str:
    """Return the models' quantisation, or both where they differ."""
    found = (report.model("shrunk"), report.model("base"))
    return " beside ".join(dict.fromkeys(model.quantization for model in found if model is not None))


def _conditions(report: DeviceReport, model: DeviceModel) -> Mapping[str, Any]:
    settings, runtime = report.settings, report.runtime
    return {
        "runtime": runtime.name,
        "build": runtime.build,
        "package": runtime.package,
        "browser": report.device.browser,
        "user_agent": report.device.user_agent,
        "backend": runtime.backend,
        "threads": runtime.threads,
        "cross_origin_isolated": runtime.cross_origin_isolated,
        "quantization": model.quantization,
        "file": model.file,
        "sha256": model.sha256,
        "lengths": list(settings.prompt_lengths),
        "new_tokens": settings.new_tokens,
        "context": settings.context,
        "rounds": settings.rounds,
        "created": report.created,
    }


def _order(item: tuple[tuple[str, str], Any]) -> int:
    return METRICS.index(item[0][0])


def _timed(base: Rounds, shrunk: Rounds) -> tuple[Rounds, Rounds]:
    """Return the timings that both models have, in as many rounds."""
    shared = [key for key in base if key[0] in TIMED and key in shrunk and len(base[key]) == len(shrunk[key])]
    return {key: base[key] for key in shared}, {key: shrunk[key] for key in shared}
