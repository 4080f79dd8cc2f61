"""Tables in Markdown from rows of text, for cards and reports."""

from __future__ import annotations

import re
from collections.abc import Sequence

Row = tuple[str, ...]


def markdown_table(header: Row, rows: Sequence[Row]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


_SYNTAX = re.compile(r"[&<*`$\\]|\](?=\()|(?<!\w)_|_(?!\w)")


def escape_cell(text: str) -> str:
    """Escape a name so that Markdown shows it literally: file names can contain any character."""
    return _SYNTAX.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def literal_table(header: Row, rows: Sequence[Row]) -> str:
    """Return a table in Markdown whose cells are shown literally."""
    return markdown_table(header, [tuple(map(escape_cell, row)) for row in rows])
