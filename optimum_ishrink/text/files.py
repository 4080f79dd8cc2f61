"""Text files: their lines, blocks of plain text, and rows of JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from .rows import Row, read_row

IMAGE_KEYS = ("image", "images")
"""Keys of the images of a row: the path of one, or a list of paths."""

_BLOCK = 32_768
"""Characters of a plain text file that form one document when documents are drawn in random order."""


def file_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a .jsonl file, or blocks of lines of a plain text file.

    Args:
        path: The file, in UTF-8, with or without a byte-order mark.

    Raises:
        DataError: The file is missing, unreadable or not in UTF-8, or a line is not a row.
    """
    numbered = _lines(path)
    yield from _json_rows(numbered, path) if path.suffix == ".jsonl" else _blocks(numbered, path)


def file_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file without the space around them, blank ones left out.

    Args:
        path: The file, in UTF-8, with or without a byte-order mark.

    Raises:
        DataError: The file is missing, unreadable or not in UTF-8.
    """
    return (text for _, line in _lines(path) if (text := line.strip()))


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the message about a file that cannot be read.

    Args:
        path: The file.
        error: Why.
    """
    if isinstance(error, FileNotFoundError):
        return DataError(f"text file {path} does not exist")
    return DataError(f"text file {path} cannot be read: {os.strerror(error.errno or 0)}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each line with its number."""
    try:
        # Bytes that are not UTF-8 become lone surrogates, so that the line they are in is known.
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.encode()
                except UnicodeEncodeError:
                    raise DataError(f"text file {path} is not UTF-8 (line {number}); save it as UTF-8") from None
                if "\0" in line:  # every other byte of UTF-16, which is valid UTF-8
                    raise DataError(
                        f"text file {path} is not UTF-8 (line {number} holds null characters); save it as UTF-8"
                    )
                yield number, line
    except OSError as error:
        raise unreadable(path, error) from None


def _blocks(lines: Iterator[tuple[int, str]], path: Path) -> Iterator[Row]:
    block: list[str] = []
    size, first = 0, 1
    for number, line in lines:
        block.append(line)
        size += len(line)
        if size > _BLOCK:
            yield _block(block, path, first)
            block, size, first = [], 0, number + 1
    if block:
        yield _block(block, path, first)


def _block(lines: list[str], path: Path, first: int) -> Row:
    return Row((("".join(lines).strip(), False),), place=f"{path} line {first}")


def _json_rows(lines: Iterator[tuple[int, str]], path: Path) -> Iterator[Row]:
    for number, line in lines:
        # Files that were joined have the mark of each at the beginning of a line.
        written = line.lstrip("\ufeff")
        if written.strip():
            place = f"{path} line {number}"
            row = _parsed(written, place)
            with_image = isinstance(row, Mapping) and any(row.get(key) is not None for key in IMAGE_KEYS)
            yield Row(place=place, with_image=row) if with_image else read_row(row, place=place)


def _parsed(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        raise DataError(f"{place} is nested too deep to be read; write one flat row a line") from None
    except ValueError:
        raise DataError(f'{place} is not JSON; write one row a line, such as {{"text": "..."}}') from None
