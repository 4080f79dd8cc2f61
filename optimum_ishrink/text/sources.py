"""Text sources: what was typed, and the documents and rows that it names.

A text source is `self` (sampled from the model), `FILE.txt`, `FILE.jsonl` or a Hub data set id with optional
`:config`, `:split` and `:column`. One reader, `row_text`, handles every kind of row.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from ..errors import DataError

SELF = "self"
"""Text sampled from the model itself."""


PYDOC = "pydoc"
"""Python's reference topics, which every installation of Python has: a source for tests and benchmarks."""


_BLOCK = 32_768
"""Characters of a plain text file that form one document when documents are drawn in random order."""


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
        if self.is_folder:
            raise DataError(f"{self.text} is a folder; name a .txt or .jsonl file in it, or a Hub data set")
        documents = _hub_documents(self.text) if self.path is None else _file_documents(self.path)
        written = (document for document in documents if document.strip())
        first = next(written, None)
        if first is None:
            kind = "data set" if self.path is None else "text file"
            raise DataError(f"{kind} {self.text} is empty; name one that holds text")
        return chain([first], written)

    def check(self) -> None:
        """Read the first document of a local source, so that an unreadable one is found before any long work.

        Raises:
            DataError: The file is missing, unreadable, empty or malformed, or the source is a folder.
        """
        if self.path is not None or self.is_folder:
            next(iter(self.documents()))

    def rows(self) -> Iterator[Any]:
        """Return the rows of a .jsonl file or a Hub data set. A column in the source's name becomes their `text`.

        Raises:
            DataError: The source has no rows, they are malformed, or they cannot be loaded.
        """
        if self.path is None and not self.is_self and self.text != PYDOC:
            return _hub_documents(self.text, _checked_row)
        if self.path is None or self.path.suffix != ".jsonl":
            raise DataError(f"{self.label} is plain text without rows; name a .jsonl file or a Hub data set")
        return _file_documents(self.path, _checked_row)

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
            raise _unreadable(self.path, error) from None


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


def _file_documents(path: Path, read: Callable[[Any], Any] | None = None) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from _json_lines(file, path, read or row_text) if path.suffix == ".jsonl" else _blocks(file)
    except UnicodeDecodeError:
        raise DataError(f"text file {path} is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"text file {path} does not exist")
    return DataError(f"text file {path} cannot be read: {os.strerror(error.errno or 0)}")


def _blocks(file: IO[str]) -> Iterator[str]:
    while lines := file.readlines(_BLOCK):
        yield "".join(lines).strip()


def _checked_row(row: Any, column: str | None = None) -> Any:
    text = row_text(row, column)
    return row if column is None else {"text": text}


def _json_lines(file: IO[str], path: Path, read: Callable[[Any], Any]) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            text = read(json.loads(line))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise DataError(
                f"{path} line {number} is not a row with 'text'; 'messages'; 'prompt' and 'completion'; "
                "or 'question', 'choices' and 'answer'"
            ) from None
        yield text


def row_text(row: Any, column: str | None = None) -> str:
    """Return the text of a data set's row.

    Args:
        row: A row with `text`; `messages`; `prompt` and `completion`; or `question`, `choices` and `answer`.
        column: Read this column instead.

    Raises:
        KeyError: The row has none of these.
    """
    if column is not None:
        return str(row[column])
    if "text" in row:
        return str(row["text"])
    if "messages" in row:
        return "\n".join(f"{message['role']}: {message['content']}" for message in row["messages"])
    if "prompt" in row:
        return f"{row['prompt']}{row['completion']}"
    return f"Question: {row['question']}\nAnswer: {row['choices'][row['answer']]}"


def _hub_documents(text: str, read: Callable[[Any, str | None], Any] = row_text) -> Iterator[Any]:
    import datasets

    name, *rest = text.split(":")
    config, split, column = (*(part or None for part in rest), None, None, None)[:3]
    try:
        rows = datasets.load_dataset(name, config, split=split or "train", streaming=True)
        yield from (read(row, column) for row in islice(rows, 20_000))
    except (KeyError, TypeError):
        raise DataError(f"data set {text!r} has no column to read; name it as {name}:CONFIG:SPLIT:COLUMN") from None
    except Exception as error:  # the library raises many types for a data set that cannot be loaded
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"cannot read {text!r}: neither a .txt or .jsonl file nor a Hub data set that can be loaded ({reason})"
        ) from None


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
