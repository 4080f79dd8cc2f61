"""The style that all figures share: sizes, colours and axes of matplotlib, saved to the same bytes each time.

Opaque white backgrounds and dark ink, so that they look the same on light and dark pages.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from .durable import replace_file

matplotlib.use("Agg")  # files only: no window, and no display needed


INK = "#222222"

SERIES = (("#2a78b5", "o"), ("#d1495b", "s"), ("#3a7d44", "^"), ("#b07d12", "D"))
"""Colours and markers of the lines in one figure, which can be told apart without colour too."""


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
    """Save a figure; the same figure gives the same bytes, and the file is whole at any time.

    Args:
        figure: The figure.
        path: The PNG file.
    """
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=140, metadata={"Software": None})
    replace_file(path, drawn.getvalue())


def name_axis(axis: Any, title: str, x: str, y: str) -> None:
    """Set a panel's title and axis labels, in dark ink, and remove the box around it.

    Args:
        axis: The panel.
        title: Its title.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
    """
    axis.set_title(title, loc="left", color=INK, fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
