"""The style that all figures share.

Opaque white backgrounds and dark ink, so that they read the same on a light and on a dark page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("Agg")  # files only: no window, and no display needed


INK = "#222222"

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
    axis.set_title(title, loc="left", color=INK, fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
