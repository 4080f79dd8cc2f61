"""Text sources: what was typed, and the documents and rows that it names.

A text source is `self` (sampled from the model), `FILE.txt`, `FILE.jsonl` or a Hub data set id with optional
`:config`, `:split` and `:column`. One reader, `read_row`, handles every kind of row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..errors import DataError, one_line
from .files import file_rows, unreadable
from .image_rows import ImageRow, read_image_row
from .rows import NoSuchForm, Row, read_row

SELF = "self"
"""Text sampled from the model itself."""

SAMPLED_TOGETHER = 64
"""Windows of it that are sampled at once. It changes the draw, so it is fixed."""

PYDOC = "pydoc"
"""Python's reference topics, which every installation of Python has: a source for tests and benchmarks."""


@dataclass(frozen=True)
class TextSource:
    """One source of text, as it was typed.

    Args:
        text: What was typed.
    """

    text: str

    @property
    def is_self(self) -> bool:
        """Whether the text is sampled from the model."""
        return self.text == SELF

    @property
    def is_folder(self) -> bool:
        """Whether it names a local folder, which is not a text source."""
        return self.path is None and not self.is_self and Path(self.text).expanduser().is_dir()

    @property
    def path(self) -> Path | None:
        """The local file, or None."""
        return Path(self.text).expanduser() if self.text.endswith((".txt", ".jsonl")) else None

    @property
    def label(self) -> str:
        """A name for reports: the name of the file without its folder."""
        if self.text == PYDOC:
            return "Python reference topics"
        return self.path.name if self.path is not None else self.text

    def documents(self) -> Iterator[str]:
        """Return the source's documents in their order, without blank ones.

        The first one is read immediately, so that a source without text is found before any long work.

        Raises:
            DataError: The file is missing, unreadable, empty or malformed, or the data set cannot be loaded. Errors
                after the first document are raised when they are reached.
        """
        if self.text == PYDOC:
            return _pydoc()
        written = (text for row in self._read() if (text := row.text()).strip())
        first = next(written, None)
        if first is None:
            raise self._empty()
        return chain([first], written)

    @property
    def has_images(self) -> bool:
        """Whether it is a .jsonl file whose first row has an image.

        Raises:
            DataError: The file is missing, unreadable, empty or malformed.
        """
        if self.path is None or self.path.suffix != ".jsonl":
            return False
        return next(iter(self.rows())).with_image is not None

    def check(self, *, images: bool = False) -> None:
        """Read the first document of a local source, so that an unreadable one is found before any long work.

        Args:
            images: Whether rows may have images. Then all rows are read, and all images have to be there.

        Raises:
            DataError: The file is missing, unreadable, empty or malformed, the source is a folder, or an image is
                missing.
        """
        if images and self.has_images:
            for row in self.image_rows():
                row.check()
        elif self.path is not None or self.is_folder:
            next(iter(self.documents()))

    def image_rows(self) -> Iterator[ImageRow]:
        """Yield the rows of a .jsonl file whose rows have images.

        Raises:
            DataError: A row has no image, or is malformed.
        """
        assert self.path is not None, "only files have rows with images"
        return (read_image_row(row, self.path.parent) for row in self.rows())

    def rows(self) -> Iterator[Row]:
        """Return the rows of a .jsonl file or a Hub data set.

        The first one is read immediately.

        Raises:
            DataError: The source has no rows, they are malformed, or they cannot be loaded. Errors after the first row
                are raised when they are reached.
        """
        if self.is_self or self.text == PYDOC or (self.path is not None and self.path.suffix != ".jsonl"):
            raise DataError(f"{self.label} is plain text without rows; name a .jsonl file or a Hub data set")
        rows = self._read()
        first = next(rows, None)
        if first is None:
            raise self._empty()
        return chain([first], rows)

    def _read(self) -> Iterator[Row]:
        if self.is_folder:
            raise DataError(f"{self.text} is a folder; name a .txt or .jsonl file in it, or a Hub data set")
        return _hub_rows(self.text) if self.path is None else file_rows(self.path)

    def _empty(self) -> DataError:
        kind = "data set" if self.path is None else "text file"
        return DataError(f"{kind} {self.text} is empty; name one that holds text")

    def fingerprint(self) -> str | None:
        """Return a hash of a local file's contents, so that a report identifies the text.

        Raises:
            DataError: The file is missing or unreadable.
        """
        if self.path is None:
            return None
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]
        except OSError as error:
            raise unreadable(self.path, error) from None


def parse_sources(texts: str | Sequence[str]) -> tuple[TextSource, ...]:
    """Parse `a.txt,self` or a list of such names.

    Raises:
        DataError: The list is empty.
    """
    names = texts.split(",") if isinstance(texts, str) else list(texts)
    sources = tuple(TextSource(name.strip()) for name in names if name.strip())
    if not sources:
        raise DataError("no text source; name 'self', a .txt or .jsonl file, or a Hub data set")
    return sources


def label_sources(sources: Sequence[TextSource]) -> list[str]:
    """Return a unique name for each source, in their order.

    Args:
        sources: The sources. Files of the same name are prefixed with as many of their folders as makes them unique.
            A source that is given twice gets a number.
    """
    places = [
        (*source.path.parent.resolve().parts, source.path.name) if source.path is not None else (source.label,)
        for source in sources
    ]
    labels: list[str] = []
    for place in places:
        depth = 1
        while any(other != place and other[-depth:] == place[-depth:] for other in places):
            depth += 1
        label = Path(*place[-depth:]).as_posix()
        again = places[: len(labels)].count(place)
        labels.append(f"{label} ({again + 1})" if again else label)
    return labels


def _pydoc() -> Iterator[str]:
    """Yield Python's reference topics: real English that every installation of Python has."""
    from pydoc_data.topics import topics

    return iter(topics[name] for name in sorted(topics))


_ROWS = 20_000
"""Rows of a Hub data set that are read: far more than any run needs, and a data set may be endless."""


def _hub_rows(text: str) -> Iterator[Row]:
    import datasets

    name, *rest = text.split(":")
    config, split, column = (*(part or None for part in rest), None, None, None)[:3]
    try:
        rows = datasets.load_dataset(name, config, split=split or "train", streaming=True)
        for number, row in enumerate(islice(rows, _ROWS), start=1):
            try:
                read = read_row(_without_nulls(row), column, place=f"data set {text} row {number}")
            except NoSuchForm:
                raise DataError(
                    f"data set {text!r} has no column to read in row {number}; name it as {name}:CONFIG:SPLIT:COLUMN"
                ) from None
            yield read
    except DataError:
        raise
    except Exception as error:  # the library raises many types for a data set that cannot be loaded
        reason = one_line(error, 160)
        raise DataError(
            f"cannot read {text!r}: neither a .txt or .jsonl file nor a Hub data set that can be loaded ({reason})"
        ) from None


def _without_nulls(value: Any, *, inside: bool = False) -> Any:
    """Return a row without the keys that its table adds to objects: all objects of a column have the same keys there.

    Args:
        value: The row, or a value in it.
        inside: Whether it is inside of a column.
    """
    if isinstance(value, Mapping):
        return {
            key: _without_nulls(item, inside=True)
            for key, item in value.items()
            if not (inside and item is None and key != "content")
        }
    return [_without_nulls(item, inside=True) for item in value] if isinstance(value, list) else value


def equal_shares(samples: int, sources: int) -> list[int]:
    """Return how many of the samples each source gives; the first sources give the remainder."""
    return [samples // sources + (i < samples % sources) for i in range(sources)]


def windows_per_source(sources: Sequence[TextSource], samples: int) -> list[tuple[TextSource, int]]:
    """Return each source with its number of windows; one that is named twice gets two shares of different windows.

    Args:
        sources: The sources.
        samples: Windows in all.
    """
    found: dict[str, tuple[TextSource, int]] = {}
    for source, share in zip(sources, equal_shares(samples, len(sources)), strict=True):
        first, so_far = found.get(source_identity(source), (source, 0))
        found[source_identity(source)] = (first, so_far + share)
    return list(found.values())


def source_identity(source: TextSource) -> str:
    """Return what identifies a source: a hash of a file's contents, or what was typed."""
    return source.fingerprint() or source.text
