"""What a reader of the card looks for first: size, quality and speed; and samples of both models."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..core.table import Row, escape_cell, markdown_table
from ..report.measurement import Comparison, Measurement, Sample
from ..report.plan import Plan
from ..report.report import Report
from ..report.tables import METRICS, format_measurement

SUMMARY_HEADER: Row = ("", "base", "this model", "comparison")
_TEXT_FIGURES = ("perplexity", "bits_per_byte")
_SPEED_FIGURES = ("decode_tokens_per_second", "prefill_tokens_per_second", "time_to_first_token_seconds")


def summary_rows(report: Report, plan: Plan) -> list[Row]:
    """Return (what, base, shrunk, comparison) for size, quality and speed; figures that were not measured have no row.

    Of several figures of a kind the worst is shown, so that the summary does not flatter.

    Args:
        report: The report.
        plan: The plan.
    """
    base, shrunk = report.base, report.shrunk
    rows: list[Row] = [
        (
            "**Size**, parameters",
            f"{plan.num_parameters:,}",
            f"{plan.new_num_parameters:,}",
            f"**{plan.removed_share:.2%} fewer**",
        )
    ]
    if base is not None:
        rows.append(
            (
                "Size, weights in MB",
                f"{base.bytes / 1e6:,.1f}",
                f"{shrunk.bytes / 1e6:,.1f}",
                f"{1 - shrunk.bytes / base.bytes:.2%} less",
            )
        )
    return rows + _text_row(report) + _task_row(report) + _speed_row(report)


def _text_row(report: Report) -> list[Row]:
    for metric in _TEXT_FIGURES:
        found = [pair for pair in report.pairs("quality") if pair[1].metric == metric]
        if not found:
            continue
        before, after = max(found, key=lambda pair: pair[1].value / pair[0].value if pair[0] else 0.0)
        compared = ""
        if before is not None:
            compared = f"**{after.value / before.value:.2f} times**"
            compared += _interval(report.comparison(after))
        return [
            (f"**Quality**, {_what(after, len(found), 'texts')}", _old(before), format_measurement(after), compared)
        ]
    return []


def _task_row(report: Report) -> list[Row]:
    tasks = [each for each in report.comparisons if each.higher_is_better and each.metric not in METRICS]
    known = [each for each in tasks if each.ratio is not None]
    if not known:
        return []
    worst = min(known, key=lambda each: each.ratio or 0.0)
    key = (worst.metric, worst.dataset)
    for before, after in report.pairs("quality"):
        if (after.metric, after.dataset) == key:
            compared = f"**{worst.ratio:.1%} retained**{_interval(worst)}"
            return [
                (
                    f"**Quality**, {_what(after, len(known), 'task figures')}",
                    _old(before),
                    format_measurement(after),
                    compared,
                )
            ]
    return []


def _speed_row(report: Report) -> list[Row]:
    for metric in _SPEED_FIGURES:
        found = [
            (before, after) for before, after in report.pairs("speed") if after.metric == metric and before is not None
        ]
        # PyTorch's figures where there are any: those of another runtime are not comparable with them.
        found = [pair for pair in found if pair[1].runtime is None] or found
        if not found:
            continue
        sign = -1 if metric.endswith("_seconds") else 1
        before, after = min(found, key=lambda pair: sign * _speed_ratio(*pair))
        versus = after.versus_base
        compared = f"**{_speed_ratio(before, after):.2f} times**"
        if versus is not None:
            low, high = versus.interval
            compared += f" (99% interval {low:.2f} to {high:.2f}): {versus.verdict}"
        what = _what(after, len(found), "settings")
        return [(f"**Speed**, {what}", format_measurement(before), format_measurement(after), compared)]
    return []


def _speed_ratio(before: Measurement, after: Measurement) -> float:
    found = after.versus_base
    return found.ratio if found is not None else after.value / before.value


def _what(measurement: Measurement, count: int, kind: str) -> str:
    name = METRICS.get(measurement.metric, escape_cell(measurement.metric))
    several = f" (worst of {count} {kind})" if count > 1 else ""
    return f"{name} on {escape_cell(measurement.dataset)}{several}"


def _old(before: Measurement | None) -> str:
    return "" if before is None else format_measurement(before)


def _interval(found: Comparison | None) -> str:
    if found is None:
        return ""
    if found.ratio_low is None or found.ratio_high is None:
        return f": {found.verdict}"
    if found.higher_is_better:
        return f" (95% interval {found.ratio_low:.1%} to {found.ratio_high:.1%}): {found.verdict}"
    return f" (95% interval {found.ratio_low:.2f} to {found.ratio_high:.2f}): {found.verdict}"


def samples_markdown(samples: Sequence[Sample]) -> str:
    """Return prompts and generated texts side by side, escaped so that nothing in them is read as Markdown or HTML.

    Args:
        samples: The samples.
    """
    paired = any(sample.base is not None for sample in samples)
    header = ("prompt", "base", "this model") if paired else ("prompt", "this model")
    rows = []
    for sample in samples:
        texts = (sample.prompt, sample.base or "", sample.shrunk) if paired else (sample.prompt, sample.shrunk)
        rows.append(tuple(_literal(text) for text in texts))
    return markdown_table(header, rows)


_SPECIAL = re.compile(r"[\\`*_{}\[\]<>()#|~$&@:=!]")


def _literal(text: str) -> str:
    """Return text that Markdown shows verbatim, in one cell: a character reference is never read as syntax."""
    clean = "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text.strip())
    # A model that repeats itself may write one long word, which would leave the other columns no room.
    clean = re.sub(r"(\S{24})(?=\S)", "\\1\u200b", clean)
    return re.sub(r"\s*\n\s*", "<br>", _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", clean))
