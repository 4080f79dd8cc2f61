"""The tables of a report: in the terminal and, from the same rows, in the card."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.table import Row
from .measurement import Measurement, Sample
from .report import Report

METRICS = {
    "perplexity": "perplexity (lower is better)",
    "bits_per_byte": "bits per byte (lower is better)",
    "tokens_per_byte": "tokens per byte (lower is better)",
    "kl_divergence": "KL divergence from the base, nats/token",
    "top1_agreement": "top-1 agreement with the base",
    "time_to_first_token_seconds": "time to first token, ms",
    "prefill_tokens_per_second": "prefill, tokens/s",
    "decode_tokens_per_second": "decode, tokens/s",
    "load_seconds": "load time to first token, ms",
    "peak_memory_bytes": "peak resident memory, MiB",
    "peak_device_memory_bytes": "peak device memory, MiB",
    "kv_cache_bytes_per_token": "KV cache, bytes/token",
    "flops_per_token": "operations, MFLOP/token",
    "parameters_without_embeddings": "parameters without embeddings",
    "model_load_seconds": "load time without generation, ms",
    "response_seconds": "whole response, ms",
    "file_bytes": "file, MiB",
}


_SCALE = {
    "peak_memory_bytes": 2**20,
    "peak_device_memory_bytes": 2**20,
    "flops_per_token": 1e6,
    "file_bytes": 2**20,
}


_INTEGERS = ("kv_cache_bytes_per_token", "parameters_without_embeddings")


_BY_DEFINITION = {"kl_divergence": 0.0, "top1_agreement": 1.0}
"""What the base scores against itself; it is not a measurement, so it is not in the report."""


def format_measurement(measurement: Measurement) -> str:
    """Return a measurement as text, with its standard error or its quartiles."""
    value = measurement.value
    if measurement.metric in _INTEGERS:
        return f"{value:,.0f}"
    if measurement.metric in _SCALE:
        return f"{value / _SCALE[measurement.metric]:,.1f}"
    if measurement.quartiles is not None:
        low, high = measurement.quartiles
        if measurement.metric.endswith("_seconds"):
            return f"{value * 1000:.0f} [{low * 1000:.0f}, {high * 1000:.0f}]"
        return f"{value:.1f} [{low:.1f}, {high:.1f}]"
    if abs(value) >= 1e9:  # hundreds of digits otherwise
        return f"{value:.3e}" if measurement.stderr is None else f"{value:.3e} ± {measurement.stderr:.1e}"
    digits = 2 if measurement.metric == "perplexity" else 3
    spread = "" if measurement.stderr is None else f" ± {measurement.stderr:.{digits}f}"
    return f"{value:.{digits}f}{spread}"


def report_rows(report: Report, parts: Sequence[str] = ("quality", "speed")) -> list[Row]:
    """Return (what, on what, n, base, shrunk, ratio) for every number in a report.

    Args:
        report: The report.
        parts: The parts to include.
    """
    rows: list[Row] = []
    base, shrunk = report.base, report.shrunk
    for name, attribute in (("parameters", "params"), ("weight bytes", "bytes")):
        new = getattr(shrunk, attribute)
        old = getattr(base, attribute) if base else None
        rows.append((name, "checkpoint", "", f"{old:,}" if old else "", f"{new:,}", f"{new / old:.3f}" if old else ""))
    for part in parts:
        for before, after in report.pairs(part):
            old_text, ratio = "", ""
            if before is not None:
                old_text = format_measurement(before)
                ratio = _ratio(before, after)
            elif base is not None and after.metric in _BY_DEFINITION:
                old_text = f"{_BY_DEFINITION[after.metric]:g} (by definition)"
            what = METRICS.get(after.metric, after.metric)
            if after.carried:
                what += ", carried" if after.shared is None else f", carried, at {after.shared:.1%} of the tokens"
            if after.num_fewshot is not None:
                what += f", {after.num_fewshot}-shot"
            rows.append((what, after.dataset, str(after.n), old_text, format_measurement(after), ratio))
    return rows


def _ratio(before: Measurement, after: Measurement) -> str:
    """Return shrunk over base; for models timed in turn, the median over rounds and the verdict."""
    found = after.versus_base
    if found is not None:
        return f"{found.ratio:.3f}, {found.verdict}"
    return f"{after.value / before.value:.3f}" if before.value else ""


def speed_rows(report: Report) -> list[Row]:
    """Return (what, on what, n, base, shrunk, ratio, interval, base against itself, verdict) of speed and footprint.

    Without a base it is (what, on what, n, model, model against itself).

    Args:
        report: The report.
    """
    rows: list[Row] = []
    for before, after in report.pairs("speed"):
        what, value = METRICS.get(after.metric, after.metric), format_measurement(after)
        if report.base is None:
            spread = after.self_spread
            rows.append((what, after.dataset, str(after.n), value, "" if spread is None else f"± {spread:.1%}"))
            continue
        cells = ("", "", "", "")
        if before is not None:
            found = after.versus_base
            cells = (f"{after.value / before.value:.3f}" if before.value else "", "", "", "")
            if found is not None:
                low, high = found.interval
                self_spread = f"± {found.spread:.1%}"
                cells = (f"{found.ratio:.3f}", f"[{low:.3f}, {high:.3f}]", self_spread, found.verdict)
        old = "" if before is None else format_measurement(before)
        rows.append((what, after.dataset, str(after.n), old, value, *cells))
    return rows


def speed_header(report: Report) -> Row:
    """Return the header of `speed_rows`.

    Args:
        report: The report.
    """
    if report.base is None:
        return ("", "on", "n", "model", "against itself")
    return ("", "on", "n", "base", "shrunk", "ratio", "99% interval", "base against itself", "verdict")


def retained_rows(report: Report) -> list[Row]:
    """Return (what, on what, n, retained, 95% interval, McNemar's p, verdict) for every figure of both models."""
    rows: list[Row] = []
    for found in report.comparisons:
        low, high = ("?" if end is None else f"{end:.1%}" for end in (found.ratio_low, found.ratio_high))
        rows.append(
            (
                METRICS.get(found.metric, found.metric),
                found.dataset,
                f"{found.n:,}",
                "" if found.ratio is None else f"{found.ratio:.1%}",
                "" if found.ratio is None else f"{low} to {high}",
                "" if found.p_value is None else f"{found.p_value:.3g}",
                found.verdict,
            )
        )
    return rows


RETAINED_HEADER: Row = ("", "on", "n", "shrunk / base", "95% interval", "McNemar's p", "verdict")


def sample_text(sample: Sample) -> str:
    """Return a prompt and what the models wrote after it, for the terminal."""
    lines = [f"Prompt: {sample.prompt}"]
    if sample.base is not None:
        lines.append(f"  base:   {' '.join(sample.base.split())}")
    lines.append(f"  shrunk: {' '.join(sample.shrunk.split())}")
    return "\n".join(lines)


RECOVERY_HEADER: Row = ("", "on", "before recovery", "after")


REPORT_HEADER: Row = ("", "on", "n", "base", "shrunk", "ratio")
