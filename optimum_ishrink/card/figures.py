"""The card's figures: what was removed where, and the effect on quality and speed.

Opaque white backgrounds and dark ink, so that they read the same on light and dark pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..core.plot import INK, name_axis, new_figure, save_figure
from ..report.measurement import Measurement
from ..report.plan import Plan
from ..report.report import Report
from ..report.tables import METRICS

_RETAINED, _REMOVED = "#2a78b5", "#d1495b"


_PARTS = {
    "num_key_value_heads": "KV groups",
    "num_attention_heads": "query heads",
    "num_experts": "experts",
    "intermediate_size": "MLP neurons",
}


def retained_shares(plan: Plan) -> dict[str, list[float]]:
    """Return the retained share of units in each of the base's layers, for every dimension that changes within layers.

    It is 0 for a dropped layer. When only layers are removed, there is one entry, for whole layers.

    Args:
        plan: The plan.
    """
    position = {layer: i for i, layer in enumerate(plan.layers)}
    total = plan.shape["num_hidden_layers"]
    shares = {}
    for key, name in _PARTS.items():
        if key not in plan.shape or plan.new_shape[key] == plan.shape[key]:
            continue
        if key == "num_attention_heads" and "num_key_value_heads" in plan.units and key not in plan.units:
            continue  # removed with their KV groups, in the same share
        retained = plan.new_shape[key] / plan.shape[key]
        label = "KV heads after the merge" if key == "num_key_value_heads" and plan.merges is not None else name
        without = {layer for layer, row in zip(plan.layers, plan.units.get(key, ()), strict=False) if not row}
        shares[label] = [
            0.0 if layer not in position else 1.0 if layer in without else retained for layer in range(total)
        ]
    return shares or {"whole layers": [1.0 if layer in position else 0.0 for layer in range(total)]}


def draw_removed(plan: Plan, path: Path) -> None:
    """Draw what is retained and removed in each of the base's layers; dropped layers are fully hatched.

    Args:
        plan: The plan.
        path: The PNG file.
    """
    shares = retained_shares(plan)
    figure, axes = new_figure(len(shares), 1, 9, 1.5 * len(shares) + 0.8)
    total = plan.shape["num_hidden_layers"]
    for axis, (name, retained) in zip(axes, shares.items(), strict=True):
        percent = [100 * share for share in retained]
        axis.bar(range(total), percent, width=0.86, color=_RETAINED, label="retained")
        removed = [100 - share for share in percent]
        axis.bar(
            range(total),
            removed,
            width=0.86,
            bottom=percent,
            color="#f6d5d8",
            edgecolor=_REMOVED,
            linewidth=0.6,
            hatch="////",
            label="removed",
        )
        least = min((share for share in percent if share), default=100.0)
        within = "" if least == 100 else f"{least:.1f}% retained in the remaining layers"
        name_axis(axis, f"{name}: {within}" if within else name, "", "% of the layer")
        axis.set_xlim(-0.6, total - 0.4)
        axis.set_ylim(0, 100)
        axis.set_xticks(range(0, total, 1 if total <= 32 else 4))
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel("layer of the base model")
    title = f"{plan.removed_share:.2%} of all parameters removed; {total - len(plan.layers)} of {total} layers dropped"
    before, after = (shape.get("vocab_size", 0) for shape in (plan.shape, plan.new_shape))
    if after < before:
        title += f"; {before - after:,} of {before:,} rows of the vocabulary"
    figure.suptitle(title, color=INK, fontsize=11)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    save_figure(figure, path)


_VERDICTS = {"worse": (_REMOVED, "s"), "no worse": ("#3a7d44", "o"), "too few to tell": ("#6b6b6b", "D")}


def draw_quality(report: Report, path: Path) -> None:
    """Draw every figure as a share of the base's, with its 95% interval, coloured by the verdict.

    Figures where higher is better and where lower is better have one panel each. The line at 100% is the base.

    Args:
        report: A report with a comparison whose ratio is known.
        path: The PNG file.
    """
    known = [found for found in report.comparisons if found.ratio is not None]
    panels = [
        (title, rows)
        for title, better in (
            ("share of the base retained (higher is better)", True),
            ("relative to the base (lower is better)", False),
        )
        if (rows := [found for found in known if found.higher_is_better is better])
    ]
    heights = [len(rows) + 1.6 for _, rows in panels]
    figure = Figure(figsize=(9, 0.36 * sum(heights) + 0.5), layout="constrained", facecolor="white")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    seen = {}
    for axis, (title, rows) in zip(axes, panels, strict=True):
        axis.axvline(100, color=INK, linewidth=1, linestyle="--")
        for y, found in enumerate(rows):
            verdict = found.verdict if found.verdict in _VERDICTS else "too few to tell"
            colour, marker = _VERDICTS[verdict]
            value = 100 * (found.ratio or 0.0)
            if found.ratio_low is not None and found.ratio_high is not None:
                axis.hlines(y, 100 * found.ratio_low, 100 * found.ratio_high, color=colour, linewidth=2.5)
            (seen[verdict],) = axis.plot(value, y, marker, color=colour, markersize=7)
        names = [f"{_short(f.dataset)}, {_short(_metric(f.metric))} (n={f.n:,})" for f in rows]
        axis.set_yticks(range(len(rows)), names)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.margins(x=0.08)
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        name_axis(axis, title, "% of the base's figure, with 95% interval", "")
    figure.legend(
        list(seen.values()), list(seen), loc="outside lower right", ncols=len(seen), fontsize=8, frameon=False
    )
    save_figure(figure, path)


def _metric(name: str) -> str:
    """Return a metric's name without its direction, which the panel's title has."""
    return METRICS.get(name, name).partition(" (")[0]


def _short(name: str) -> str:
    """Return a name that fits beside a panel; matplotlib would read a pair of dollar signs as mathematics."""
    return (name if len(name) <= 32 else name[:31] + "\u2026").replace("$", r"\$")


def draw_importance(plan: Plan, scores: Mapping[str, torch.Tensor], path: Path) -> None:
    """Draw the importance of layers, KV groups and neurons by layer, with removed units marked.

    Args:
        plan: The plan.
        scores: The scores that the plan was made from; a dimension that did not change may be absent.
        path: The PNG file.
    """
    panels = [key for key in plan.shape if key in scores]
    figure = Figure(figsize=(9, 2.6 * len(panels) + 0.4), layout="constrained", facecolor="white")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    dropped = set(range(plan.shape["num_hidden_layers"])) - set(plan.layers)
    drawers: dict[str, Callable[[Any, Plan, torch.Tensor, set[int]], None]] = {
        "num_hidden_layers": _draw_layers,
        "num_key_value_heads": partial(_draw_heads, key="num_key_value_heads", name="KV group"),
        "num_attention_heads": partial(_draw_heads, key="num_attention_heads", name="query head"),
        "num_experts": partial(_draw_heads, key="num_experts", name="expert"),
        "intermediate_size": _draw_neurons,
    }
    for axis, key in zip(axes, panels, strict=True):
        drawers[key](axis, plan, scores[key].float(), dropped)
        axis.set_xlim(-0.6, plan.shape["num_hidden_layers"] - 0.4)
        axis.set_xlabel("layer of the base model")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _draw_layers(axis: Any, plan: Plan, scores: torch.Tensor, dropped: set[int]) -> None:
    for layers, colour, label in ((plan.layers, _RETAINED, "retained"), (sorted(dropped), _REMOVED, "removed")):
        axis.bar(layers, [float(scores[layer]) for layer in layers], color=colour, label=label)
    _add_legend(axis)
    axis.set_yscale("log")
    axis.set_ylabel("importance (log)")
    name = plan.choice.layer_importance or "importance"
    axis.set_title(f"Layers by {name}: {len(dropped)} of {len(scores)} removed", loc="left", color=INK, fontsize=11)


def _draw_heads(axis: Any, plan: Plan, scores: torch.Tensor, dropped: set[int], key: str, name: str) -> None:
    share = scores / scores.sum(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    axis.imshow(share.T.numpy(), aspect="auto", cmap="Blues", origin="lower", vmin=0, vmax=float(share.max()))
    retained = dict(zip(plan.layers, plan.units[key], strict=True))
    for layer in range(scores.shape[0]):
        for group in range(scores.shape[1]):
            if layer in dropped or (retained[layer] and group not in retained[layer]):
                axis.plot(layer, group, marker="x", color=_REMOVED, markersize=6, markeredgewidth=1.8)
    axis.set_yticks(range(scores.shape[1]))
    axis.set_ylabel(name)
    removed = plan.shape[key] - plan.new_shape[key]
    axis.set_title(
        f"{name}s by share of their layer's importance (darker is higher): {removed} of {scores.shape[1]} removed "
        "from each layer" + (" (×)" if removed or dropped else ""),
        loc="left",
        color=INK,
        fontsize=11,
    )


def _draw_neurons(axis: Any, plan: Plan, scores: torch.Tensor, dropped: set[int]) -> None:
    units = dict(zip(plan.layers, plan.units["intermediate_size"], strict=True))
    removed = []
    for layer, row in enumerate(scores):
        retained = torch.tensor(units.get(layer, ()), dtype=torch.int64)
        lost = float(row.sum() - row[retained].sum()) / max(float(row.sum()), torch.finfo(row.dtype).tiny)
        removed.append(1.0 if layer in dropped else lost)
    # Those of dropped experts go as well. A layer without an MLP, or without experts in a mixture, retains fewer.
    share = 1 - max(map(len, units.values())) / scores.shape[1]
    bottom, top = [100 * (1 - x) for x in removed], [100 * x for x in removed]
    axis.bar(range(len(removed)), bottom, color=_RETAINED, label="retained")
    axis.bar(range(len(removed)), top, bottom=bottom, color=_REMOVED, label="removed")
    axis.set_ylabel("% of importance")
    axis.set_ylim(0, 100)
    _add_legend(axis)
    axis.set_title(
        f"MLP neurons: importance of the {share:.1%} removed, as a share of their layer",
        loc="left",
        color=INK,
        fontsize=11,
    )


def _add_legend(axis: Any) -> None:
    """Put the legend beside the panel's title, where it covers no bar."""
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False, borderaxespad=0)


_SPEED_TITLES = {
    "time_to_first_token_seconds": ("time to first token", "ms (lower is better)", 1000.0),
    "prefill_tokens_per_second": ("prefill", "tokens/s (higher is better)", 1.0),
    "decode_tokens_per_second": ("decode", "tokens/s (higher is better)", 1.0),
}


def timed_pairs(report: Report) -> list[tuple[Measurement, Measurement]]:
    """Return the speeds that `draw_speed` draws: those of base and shrunk model in PyTorch, timed in turn."""
    return [
        (base, shrunk)
        for base, shrunk in report.pairs("speed")
        if base is not None and shrunk.metric in _SPEED_TITLES and shrunk.runtime is None
    ]


def draw_speed(report: Report, path: Path) -> None:
    """Draw base and shrunk speed side by side: medians as bars, quartiles as lines, every turn as a dot.

    Args:
        report: A report whose two models were timed; each setting has a row.
        path: The PNG file.
    """
    pairs = timed_pairs(report)
    settings = list(dict.fromkeys(base.dataset for base, _ in pairs))
    figure = Figure(figsize=(9, 3.2 * len(settings)), layout="constrained", facecolor="white")
    rows = figure.subplots(len(settings), len(_SPEED_TITLES), squeeze=False)
    for setting, axes in zip(settings, rows, strict=True):
        for axis, (base, shrunk) in zip(axes, (pair for pair in pairs if pair[0].dataset == setting), strict=True):
            title, unit, scale = _SPEED_TITLES[base.metric]
            for x, (measurement, colour) in enumerate(((base, "#8c8c8c"), (shrunk, _RETAINED))):
                _draw_bar(axis, x, measurement, colour, scale)
            found = shrunk.versus_base
            ratio = shrunk.value / base.value if found is None else found.ratio
            verdict = "" if found is None else f", {found.verdict}"
            axis.set_xticks([0, 1], ["base", f"shrunk\n({ratio:.2f}×{verdict})"])
            axis.set_ylabel(unit)
            axis.set_title(title, color=INK, fontsize=11)
            axis.set_ylim(bottom=0)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].annotate(setting, (0, 1.14), xycoords="axes fraction", fontsize=10, weight="bold", color=INK)
    figure.suptitle(
        f"bars: medians; lines: quartiles; dots: all turns of {pairs[0][1].n} rounds", fontsize=9, color=INK
    )
    save_figure(figure, path)


def _draw_bar(axis: Any, x: int, measurement: Measurement, colour: str, scale: float) -> None:
    axis.bar(x, measurement.value * scale, color=colour, width=0.6)
    if measurement.quartiles is not None:
        axis.vlines(x, *(value * scale for value in measurement.quartiles), color=INK, linewidth=2)
    dots = [value * scale for value in measurement.samples]
    axis.plot([x + 0.18] * len(dots), dots, ".", color=INK, markersize=4, alpha=0.6)
