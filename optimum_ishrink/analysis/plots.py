"""The plots of an analysis: quality against sparsity and parameters, and what each layer is worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.plot import SERIES, name_axis, new_figure, save_figure
from ..report.analysis import Analysis, SparsityLevel
from ..report.measurement import Measurement

_DIVERGENCE = "KL divergence, nats/token"


def draw_sparsity(analysis: Analysis, path: Path) -> None:
    """Draw divergence and agreement against sparsity, and divergence against the parameters removed.

    Args:
        analysis: The analysis.
        path: The PNG file.
    """
    figure, axes = new_figure(2, 2, 10, 7)
    _draw_kinds(axes[0], analysis, "kl_divergence", lambda level: 100 * level.sparsity)
    name_axis(axes[0], "Divergence against sparsity", "% of the kind's units at zero", _DIVERGENCE)
    _draw_kinds(axes[1], analysis, "top1_agreement", lambda level: 100 * level.sparsity)
    name_axis(axes[1], "Agreement against sparsity", "% of the kind's units at zero", "top-1 agreement")
    _draw_kinds(axes[2], analysis, "kl_divergence", lambda level: 100 * level.removed_share)
    name_axis(axes[2], "Divergence against parameters removed", "% of all parameters at zero", _DIVERGENCE)
    _draw_kinds(axes[3], analysis, "kl_divergence", lambda level: 100 * level.removed_share)
    name_axis(axes[3], "The same, near the threshold", "% of all parameters at zero", _DIVERGENCE)
    axes[3].set_ylim(0, 2 * analysis.max_divergence)
    near = [
        100 * level.removed_share
        for level in analysis.levels
        if level.measured("kl_divergence").value <= 2 * analysis.max_divergence
    ]
    axes[3].set_xlim(0, max(1.0, *near) * 1.15)
    for axis in (axes[2], axes[3]):
        axis.axhline(analysis.max_divergence, color="#666666", linewidth=1, linestyle="--")
    first = analysis.levels[0].measured("kl_divergence")
    figure.suptitle(
        f"Zero-out of {analysis.model}, nothing repaired: {first.n} windows, bars are ± one standard error",
        fontsize=10,
    )
    save_figure(figure, path)


def _draw_kinds(axis: Any, analysis: Analysis, metric: str, place: Callable[[SparsityLevel], float]) -> None:
    for (kind, levels), (colour, marker) in zip(analysis.kinds().items(), SERIES, strict=True):
        found = [level.measured(metric) for level in levels]
        axis.errorbar(
            [place(level) for level in levels],
            [measurement.value for measurement in found],
            yerr=_errors(found),
            color=colour,
            marker=marker,
            markersize=4,
            capsize=2,
            linewidth=1.4,
            label=kind,
        )
    axis.legend(fontsize=8, framealpha=1, loc="lower left" if metric == "top1_agreement" else "upper left")
    axis.set_ylim(bottom=0)


def _errors(measurements: list[Measurement]) -> list[float]:
    return [measurement.stderr or 0.0 for measurement in measurements]


def draw_sensitivity(analysis: Analysis, path: Path) -> None:
    """Draw, for each layer, the divergence without its attention, without its MLP and with the layer skipped.

    Args:
        analysis: The analysis.
        path: The PNG file.
    """
    figure, axes = new_figure(3, 1, 10, 7)
    parts = {"attention": "its attention at zero", "mlp": "its MLP at zero", "block": "the whole layer skipped"}
    rows = {part: [getattr(layer, part) for layer in analysis.sensitivity] for part in parts}
    values = [measurement.value for row in rows.values() for measurement in row]
    log = min(values) > 0
    for axis, (part, title), (colour, _) in zip(axes, parts.items(), SERIES, strict=False):
        found: list[Measurement] = rows[part]
        places = [layer.layer for layer in analysis.sensitivity]
        heights = [measurement.value for measurement in found]
        axis.bar(places, heights, yerr=_errors(found), color=colour, capsize=1)
        if log:
            axis.set_yscale("log")
            axis.set_ylim(min(values) / 2, max(values) * 2)  # the same for all, so that they can be compared
        axis.set_xlim(-0.6, len(found) - 0.4)
        axis.set_xticks(places[:: max(1, len(places) // 30)])
        name_axis(axis, f"One layer with {title}", "layer", "KL divergence (log)" if log else "KL divergence")
    figure.suptitle(
        f"Sensitivity of each layer of {analysis.model}: {_DIVERGENCE}, ± one standard error over "
        f"{analysis.sensitivity[0].block.n} windows",
        fontsize=10,
    )
    save_figure(figure, path)
