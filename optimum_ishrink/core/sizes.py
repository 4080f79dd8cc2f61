"""Sizes for people to read."""

from __future__ import annotations


def size_in_words(nbytes: float) -> str:
    """Return a number of bytes with its unit: `16.1 GB`, `0.3 MB`.

    Args:
        nbytes: The number.
    """
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"
