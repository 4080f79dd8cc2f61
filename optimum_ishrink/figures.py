"""The card's pictures: what went from where, and what that did to speed.

Opaque white backgrounds and dark ink, so that they read the same on a light and on a dark page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")  # files only: no window, and no display needed

from matplotlib.figure import Figure

from .artifacts import Measurement, Plan, Report

_KEPT, _CUT, _INK = "#2a78b5", "#d1495b", "#222222"


def draw_importance(plan: Plan, scores: Mapping[str, torch.Tensor], path: Path) -> None:
    """Draw the importance of layers, KV groups and neurons by layer, with what was cut marked.

    Args:
        plan: The plan.
        scores: The scores that it was made from; a dimension that did not change may be absent.
        path: The PNG file.
    """
    panels = [key for key in plan.shape if key in scores]
    figure = Figure(figsize=(9, 2.6 * len(panels) + 0.4), layout="constrained", facecolor="white")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    gone = set(range(plan.shape["num_hidden_layers"])) - set(plan.layers)
    drawers: dict[str, Callable[[Any, Plan, torch.Tensor, set[int]], None]] = {
        "num_hidden_layers": _draw_layers,
        "num_key_value_heads": partial(_draw_heads, key="num_key_value_heads", name="KV group"),
        "num_attention_heads": partial(_draw_heads, key="num_attention_heads", name="query head"),
        "intermediate_size": _draw_neurons,
    }
    for axis, key in zip(axes, panels, strict=True):
        drawers[key](axis, plan, scores[key].float(), gone)
        axis.set_xlim(-0.6, plan.shape["num_hidden_layers"] - 0.4)
        axis.set_xlabel("layer of the base model")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140, metadata={"Software": None})


def _draw_layers(axis: Any, plan: Plan, scores: torch.Tensor, gone: set[int]) -> None:
    colours = [_CUT if layer in gone else _KEPT for layer in range(len(scores))]
    axis.bar(range(len(scores)), scores.tolist(), color=colours)
    for layer in gone:
        axis.annotate("cut", (layer, float(scores[layer])), ha="center", va="bottom", color=_CUT, fontsize=8)
    axis.set_yscale("log")
    axis.set_ylabel("importance (log)")
    name = plan.settings.get("layer_importance", "importance")
    axis.set_title(f"Layers by {name}: {len(gone)} of {len(scores)} cut", loc="left", color=_INK, fontsize=11)


def _draw_heads(axis: Any, plan: Plan, scores: torch.Tensor, gone: set[int], key: str, name: str) -> None:
    share = scores / scores.sum(dim=1, keepdim=True)
    axis.imshow(share.T, aspect="auto", cmap="Blues", origin="lower", vmin=0, vmax=float(share.max()))
    kept = dict(zip(plan.layers, plan.units[key], strict=True))
    for layer in range(scores.shape[0]):
        for group in range(scores.shape[1]):
            if layer in gone or group not in kept[layer]:
                axis.plot(layer, group, marker="x", color=_CUT, markersize=6, markeredgewidth=1.8)
    axis.set_yticks(range(scores.shape[1]))
    axis.set_ylabel(name)
    cut = plan.shape[key] - plan.new_shape[key]
    axis.set_title(
        f"{name}s by share of their layer's importance (darker is more): {cut} of {scores.shape[1]} cut from each"
        + (" (× cut)" if cut or gone else ""),
        loc="left",
        color=_INK,
        fontsize=11,
    )


def _draw_neurons(axis: Any, plan: Plan, scores: torch.Tensor, gone: set[int]) -> None:
    kept = dict(zip(plan.layers, plan.units["intermediate_size"], strict=True))
    lost = []
    for layer, row in enumerate(scores):
        keep = torch.tensor(kept.get(layer, ()), dtype=torch.int64)
        lost.append(1.0 if layer in gone else float(1 - row[keep].sum() / row.sum()))
    share = 1 - plan.new_shape["intermediate_size"] / plan.shape["intermediate_size"]
    axis.bar(range(len(lost)), [100 * (1 - x) for x in lost], color=_KEPT, label="kept")
    axis.bar(range(len(lost)), [100 * x for x in lost], bottom=[100 * (1 - x) for x in lost], color=_CUT, label="cut")
    axis.set_ylabel("% of importance")
    axis.set_ylim(0, 100)
    axis.legend(loc="lower left", ncols=2, fontsize=8, framealpha=1)
    axis.set_title(
        f"MLP neurons: the {share:.1%} of neurons that were cut held this share of their layer's importance",
        loc="left",
        color=_INK,
        fontsize=11,
    )


_SPEED_TITLES = {
    "time_to_first_token_seconds": ("time to first token", "ms (lower is better)", 1000.0),
    "prefill_tokens_per_second": ("prefill", "tokens/s (higher is better)", 1.0),
    "decode_tokens_per_second": ("decode", "tokens/s (higher is better)", 1.0),
}


def timed_pairs(report: Report) -> list[tuple[Measurement, Measurement]]:
    """Return the speeds that `draw_speed` draws: base and shrunk model in PyTorch, timed in turn."""
    return [
        (base, shrunk)
        for base, shrunk in report.pairs("speed")
        if base is not None and shrunk.metric in _SPEED_TITLES and "runtime" not in shrunk.settings
    ]


def draw_speed(report: Report, path: Path) -> None:
    """Draw base and shrunk speed side by side: medians as bars, quartiles as lines, every turn as a dot.

    Args:
        report: A report whose two models were timed; each setting gets a row.
        path: The PNG file.
    """
    pairs = timed_pairs(report)
    settings = list(dict.fromkeys(base.dataset for base, _ in pairs))
    figure = Figure(figsize=(9, 3.2 * len(settings)), layout="constrained", facecolor="white")
    rows = figure.subplots(len(settings), len(_SPEED_TITLES), squeeze=False)
    for setting, axes in zip(settings, rows, strict=True):
        for axis, (base, shrunk) in zip(axes, (pair for pair in pairs if pair[0].dataset == setting), strict=True):
            title, unit, scale = _SPEED_TITLES[base.metric]
            for x, (measurement, colour) in enumerate(((base, "#8c8c8c"), (shrunk, _KEPT))):
                _draw_bar(axis, x, measurement, colour, scale)
            found = shrunk.settings.get("versus_base")
            ratio = shrunk.value / base.value if found is None else found["ratio"]
            verdict = "" if found is None else f", {found['verdict']}"
            axis.set_xticks([0, 1], ["base", f"shrunk\n(x{ratio:.2f}{verdict})"])
            axis.set_ylabel(unit)
            axis.set_title(title, color=_INK, fontsize=11)
            axis.set_ylim(bottom=0)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].annotate(setting, (0, 1.14), xycoords="axes fraction", fontsize=10, weight="bold", color=_INK)
    figure.suptitle(f"median, quartiles and all turns of {pairs[0][1].n} rounds", fontsize=9, color=_INK)
    save_figure(figure, path)


def _draw_bar(axis: Any, x: int, measurement: Measurement, colour: str, scale: float) -> None:
    low, high = (value * scale for value in measurement.settings["quartiles"])
    axis.bar(x, measurement.value * scale, color=colour, width=0.6)
    axis.vlines(x, low, high, color=_INK, linewidth=2)
    dots = [value * scale for value in measurement.settings["samples"]]
    axis.plot([x + 0.18] * len(dots), dots, ".", color=_INK, markersize=4, alpha=0.6)


SERIES = (("#2a78b5", "o"), ("#d1495b", "s"), ("#3a7d44", "^"), ("#b07d12", "D"))
"""Colours and markers of lines in one picture: told apart without colour as well."""


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """Return a figure in the style of the card, and its axes row by row.

    Args:
        rows: Panels from top to bottom.
        columns: Panels from left to right.
        width: Inches.
        height: Inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure so that the same figure gives the same bytes.

    Args:
        figure: The figure.
        path: The PNG file.
    """
    figure.savefig(path, dpi=140, metadata={"Software": None})


def name_axis(axis: Any, title: str, x: str, y: str) -> None:
    """Set what a panel shows, in dark ink and without a box around it.

    Args:
        axis: The panel.
        title: Its title.
        x: What runs from left to right.
        y: What runs from bottom to top.
    """
    axis.set_title(title, loc="left", color=_INK, fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
