"""The tables that people read: in the terminal and, from the same rows, in the card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from .artifacts import Analysis, Measurement, Plan, Report, Sample

Row = tuple[str, ...]

METRICS = {
    "perplexity": "perplexity (lower is better)",
    "bits_per_byte": "bits per byte (lower is better)",
    "kl_divergence": "KL divergence from the base, nats/token",
    "top1_agreement": "top-1 agreement with the base",
    "time_to_first_token_seconds": "time to first token, ms",
    "prefill_tokens_per_second": "prefill, tokens/s",
    "decode_tokens_per_second": "decode, tokens/s",
    "load_seconds": "load until the first token, ms",
    "peak_memory_bytes": "peak resident memory, MiB",
    "peak_device_memory_bytes": "peak device memory, MiB",
    "kv_cache_bytes_per_token": "KV cache, bytes/token",
    "flops_per_token": "operations, MFLOP/token",
    "parameters_without_embeddings": "parameters without embeddings",
    "model_load_seconds": "load without generation, ms",
    "file_bytes": "file, MiB",
}
_UNITS_OF = {
    "peak_memory_bytes": 2**20,
    "peak_device_memory_bytes": 2**20,
    "flops_per_token": 1e6,
    "file_bytes": 2**20,
}
_WHOLE = ("kv_cache_bytes_per_token", "parameters_without_embeddings")
_BY_DEFINITION = {"kl_divergence": 0.0, "top1_agreement": 1.0}
"""What the base scores against itself; it is no measurement, so it is not in the report."""


def format_measurement(measurement: Measurement) -> str:
    """Return a measurement as people read it: with its standard error, or its quartiles."""
    value = measurement.value
    if measurement.metric in _WHOLE:
        return f"{value:,.0f}"
    if measurement.metric in _UNITS_OF:
        return f"{value / _UNITS_OF[measurement.metric]:,.1f}"
    if measurement.metric.endswith("_seconds"):
        low, high = measurement.settings["quartiles"]
        return f"{value * 1000:.0f} [{low * 1000:.0f}, {high * 1000:.0f}]"
    if "quartiles" in measurement.settings:
        low, high = measurement.settings["quartiles"]
        return f"{value:.1f} [{low:.1f}, {high:.1f}]"
    digits = 2 if measurement.metric == "perplexity" else 3
    spread = "" if measurement.stderr is None else f" ± {measurement.stderr:.{digits}f}"
    return f"{value:.{digits}f}{spread}"


def report_rows(report: Report, parts: Sequence[str] = ("quality", "speed")) -> list[Row]:
    """Return (what, on what, n, base, shrunk, ratio) for every number in a report.

    Args:
        report: The report.
        parts: Which of its parts.
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
            if after.settings.get("num_fewshot") is not None:
                what += f", {after.settings['num_fewshot']}-shot"
            rows.append((what, after.dataset, str(after.n), old_text, format_measurement(after), ratio))
    return rows


def _ratio(before: Measurement, after: Measurement) -> str:
    """Return shrunk over base: where they were timed in turn, the median over rounds, with the verdict."""
    found = after.settings.get("versus_base")
    if found is not None:
        return f"{found['ratio']:.3f}, {found['verdict']}"
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
            spread = after.settings.get("self_spread")
            rows.append((what, after.dataset, str(after.n), value, "" if spread is None else f"± {spread:.1%}"))
            continue
        cells = ("", "", "", "")
        if before is not None:
            found = after.settings.get("versus_base")
            cells = (f"{after.value / before.value:.3f}" if before.value else "", "", "", "")
            if found is not None:
                low, high = found["interval"]
                own, verdict = f"± {found['spread']:.1%}", str(found["verdict"])
                cells = (f"{found['ratio']:.3f}", f"[{low:.3f}, {high:.3f}]", own, verdict)
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
    return ("", "on", "n", "base", "shrunk", "ratio", "99 % interval", "base against itself", "verdict")


def kept_rows(report: Report) -> list[Row]:
    """Return (what, on what, n, kept, 95 % interval, McNemar's p, verdict) for every figure that both models share."""
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


KEPT_HEADER: Row = ("", "on", "n", "shrunk / base", "95 % interval", "McNemar's p", "verdict")


def sample_text(sample: Sample) -> str:
    """Return a prompt and what the models wrote behind it, as the terminal shows it."""
    lines = [f"Prompt: {sample.prompt}"]
    if sample.base is not None:
        lines.append(f"  base:   {' '.join(sample.base.split())}")
    lines.append(f"  shrunk: {' '.join(sample.shrunk.split())}")
    return "\n".join(lines)


RECOVERY_HEADER: Row = ("", "on", "before recovery", "after")

REPORT_HEADER: Row = ("", "on", "n", "base", "shrunk", "ratio")


def spans(indices: Iterable[int]) -> str:
    """Write sorted indices briefly: `1-3, 7`."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def shape_rows(plan: Plan) -> list[Row]:
    """Return (dimension, before, after, what goes) for every dimension, and the parameters."""
    rows: list[Row] = []
    for key, before in plan.shape.items():
        after = plan.new_shape[key]
        if before == after:
            what = "nothing"
        elif key == "num_hidden_layers":
            what = f"layers {spans(set(range(before)) - set(plan.layers))}"
        elif key == "num_key_value_heads":
            what = f"{before - after} KV groups of each layer, with their query heads"
            if plan.merges is not None:
                what = f"merged {before // after} to 1 in each layer; all query heads stay"
        elif key == "num_attention_heads":
            what = f"{before - after} query heads of each layer"
        else:
            what = f"{before - after} neurons of each layer ({1 - after / before:.1%})"
        rows.append((key, f"{before:,}", f"{after:,}", what))
    rows.append(
        ("parameters", f"{plan.num_parameters:,}", f"{plan.new_num_parameters:,}", f"{plan.removed_share:.2%} of all")
    )
    return rows


SHAPE_HEADER: Row = ("dimension", "before", "after", "what goes")


def layer_rows(plan: Plan) -> list[Row]:
    """Return (layer, KV groups cut, neurons cut) for every layer of the base model."""
    rows: list[Row] = []
    position = {layer: i for i, layer in enumerate(plan.layers)}
    for layer in range(plan.shape["num_hidden_layers"]):
        if layer not in position:
            rows.append((str(layer), "removed", "", ""))
            continue
        neurons = plan.shape["intermediate_size"] - plan.new_shape["intermediate_size"]
        groups = spans(_gone(plan, "num_key_value_heads", position[layer]))
        if plan.merges is not None:
            groups = "merged " + ", ".join("+".join(map(str, heads)) for heads in plan.merges[position[layer]])
        heads = spans(_gone(plan, "num_attention_heads", position[layer]))
        rows.append((str(layer), groups or "none", heads or "none", f"{neurons:,}" if neurons else "none"))
    return rows


def _gone(plan: Plan, key: str, position: int) -> set[int]:
    return set(range(plan.shape[key])) - set(plan.units[key][position]) if key in plan.units else set()


LAYER_HEADER: Row = ("layer", "KV groups cut", "query heads cut", "neurons cut")


def config_rows(plan: Plan) -> list[Row]:
    """Return (config key, before, after) for every key of config.json that changes."""
    return [
        (key, "absent" if before is None else str(before), str(after))
        for key, (before, after) in plan.config_changes.items()
    ]


CONFIG_HEADER: Row = ("config.json", "before", "after")


_UNITS = {"num_hidden_layers": "layers", "num_key_value_heads": "KV groups", "intermediate_size": "neurons"}


def level_rows(analysis: Analysis) -> list[Row]:
    """Return (kind, sparsity, units at zero, share of the parameters, figures ...) for every level of every kind."""
    rows: list[Row] = []
    for level in analysis.levels:
        units = ", ".join(f"{count:,} {_UNITS[key]}" for key, count in level.removed_units.items())
        figures = [format_measurement(measurement) for measurement in level.quality]
        rows.append(
            (level.kind, f"{level.sparsity * 100:g} %", units or "none", f"{level.removed_share:.2%}", *figures)
        )
    return rows


def level_header(analysis: Analysis) -> Row:
    """Return the header of `level_rows`: the figures are named as the first level has them."""
    names = {
        "perplexity": "perplexity",
        "kl_divergence": "KL divergence, nats/token",
        "top1_agreement": "top-1 agreement",
    }
    figures = [names.get(found.metric, f"{found.dataset} {found.metric}") for found in analysis.levels[0].quality]
    return ("kind", "sparsity", "at zero", "parameters", *figures)


def sensitivity_rows(analysis: Analysis) -> list[Row]:
    """Return (layer, without attention, without MLP, skipped) for every layer: KL divergences."""
    return [
        (str(layer.layer), *(format_measurement(part) for part in (layer.attention, layer.mlp, layer.block)))
        for layer in analysis.sensitivity
    ]


SENSITIVITY_HEADER: Row = ("layer", "KL without its attention", "KL without its MLP", "KL with the layer skipped")


def print_table(title: str, header: Row, rows: Sequence[Row]) -> None:
    """Print a table on standard output.

    Args:
        title: What it shows.
        header: Column names.
        rows: The rows; numbers are already text.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, name in enumerate(header):
        numeric = bool(rows) and i > 0 and all(not row[i] or row[i][0].isdigit() for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    # A pipe has no width; there a row must stay one line, so that it can be searched.
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def markdown_table(header: Row, rows: Sequence[Row]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


_SYNTAX = re.compile(r"[&<*`$\\]|\](?=\()|(?<!\w)_|_(?!\w)")


def escape_cell(text: str) -> str:
    """Return a name as Markdown shows it letter by letter: a file may be called anything."""
    return _SYNTAX.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def literal_table(header: Row, rows: Sequence[Row]) -> str:
    """Return a table in Markdown whose cells hold no Markdown."""
    return markdown_table(header, [tuple(map(escape_cell, row)) for row in rows])
