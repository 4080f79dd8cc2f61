"""The tables that people read: in the terminal and, from the same rows, in the card."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

Row = tuple[str, ...]


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
