"""Text for calibration and evaluation: local files, Hub data sets, or the model's own words.

A text source is `self`, `FILE.txt`, `FILE.jsonl` or a Hub data set id with optional `:config`, `:split` and `:column`.
Text is tokenised, joined with the end-of-text token and cut into windows of equal length, so that no token is padding.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import IO, Any

import torch

from .errors import DataError
from .sampling import sample_text

SELF = "self"
PYDOC = "pydoc"
_BLOCK = 32_768
"""Characters of a plain text that count as one document when documents are drawn in random order."""


@dataclass(frozen=True)
class TextSource:
    """One source of text, as it was typed.

    Args:
        text: What was typed.
    """

    text: str

    @property
    def is_self(self) -> bool:
        """Whether the model's own words are meant."""
        return self.text == SELF

    @property
    def is_folder(self) -> bool:
        """Whether it names a folder of this machine, which is no text."""
        return self.path is None and not self.is_self and Path(self.text).expanduser().is_dir()

    @property
    def path(self) -> Path | None:
        """The local file, or None."""
        return Path(self.text).expanduser() if self.text.endswith((".txt", ".jsonl")) else None

    @property
    def label(self) -> str:
        """A name for reports: the file's own name, not its place on this machine."""
        if self.text == PYDOC:
            return "Python reference topics"
        return self.path.name if self.path is not None else self.text

    def documents(self) -> Iterator[str]:
        """Return the source's documents in their own order; those that are blank are left out.

        The first one is read at once, so that a source without text is found before any long work.

        Raises:
            DataError: The file is missing, unreadable, empty or malformed, or the data set cannot be had. What stands
                after the first document is found malformed when it is reached.
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

    def rows(self) -> Iterator[Any]:
        """Return the rows of a .jsonl file or a Hub data set as they are; a column that was named becomes its `text`.

        Raises:
            DataError: The source has no rows, they are malformed, or they cannot be had.
        """
        if self.path is None and not self.is_self and self.text != PYDOC:
            return _hub_documents(self.text, _checked_row)
        if self.path is None or self.path.suffix != ".jsonl":
            raise DataError(f"{self.label} is plain text without rows; name a .jsonl file or a Hub data set")
        return _file_documents(self.path, _checked_row)

    def fingerprint(self) -> str | None:
        """Return a hash of a local file's contents, so that a report says which text it was measured on.

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
        DataError: There is none.
    """
    names = texts.split(",") if isinstance(texts, str) else list(texts)
    sources = tuple(TextSource(name.strip()) for name in names if name.strip())
    if not sources:
        raise DataError("no text source; name 'self', a .txt or .jsonl file, or a Hub data set")
    return sources


def label_sources(sources: Sequence[TextSource]) -> list[str]:
    """Return a name of its own for each source, in their order.

    Args:
        sources: The sources. Files of one name get as much of their folders' names in front as tells them apart; a
            source that is given twice gets a number.
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
    """Yield Python's own reference topics: real English that every machine with Python has."""
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
        KeyError: It has none of these.
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
    except Exception as error:  # the library raises many types for a data set that cannot be had
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"cannot read {text!r}: neither a .txt or .jsonl file nor a Hub data set that can be had ({reason})"
        ) from None


def token_windows(
    documents: Iterable[str],
    tokenizer: Any,
    length: int,
    count: int | None,
    *,
    seed: int | None,
    label: str,
    skip: int = 0,
) -> torch.Tensor:
    """Cut text into windows of equal length.

    Args:
        documents: The text.
        tokenizer: The model's tokenizer.
        length: Tokens in a window.
        count: Windows wanted; None for all that the text gives.
        seed: Draw documents and windows in an order of this seed; None keeps the text's own order.
        label: Name of the text, for messages.
        skip: Tokens to pass over first, in the same order: windows behind them share no token with those before.

    Returns:
        Token ids, int64, shape (windows, length).

    Raises:
        DataError: The text is shorter than one window, or than the windows wanted.
    """
    wanted = None if count is None else skip + count * length
    tokens = [token for token, _, _ in token_stream(in_order(documents, seed), tokenizer, wanted)]
    count = enough_windows(len(tokens), length, count, label=label, skip=skip)
    return torch.tensor(tokens[skip : skip + count * length], dtype=torch.int64).view(count, length)


def in_order(documents: Iterable[str], seed: int | None) -> list[str]:
    """Return documents in an order of this seed, or in their own when it is None."""
    texts = list(documents)
    if seed is not None:
        random.Random(seed).shuffle(texts)
    return texts


def token_stream(
    texts: Sequence[str], tokenizer: Any, wanted: int | None, *, positions: bool = False
) -> Iterator[tuple[int, int, int | None]]:
    """Yield the tokens of texts, each text followed by the end-of-text token where the tokenizer has one.

    Args:
        texts: The texts.
        tokenizer: The model's tokenizer.
        wanted: Tokens after which no further batch of texts is read; None for all.
        positions: Say where each token ends, which only tokenizers of the tokenizers library know.

    Yields:
        The token's id, the number of its text, and the character of that text at which it ends: 0 when positions are
        not asked for, None for the end-of-text token. What no token covers belongs to the token behind it, or to the
        text's last one.
    """
    separator = tokenizer.eos_token_id
    count = 0
    for start in range(0, len(texts), 64):
        if wanted is not None and count >= wanted:
            return
        batch = texts[start : start + 64]
        also = {"return_offsets_mapping": True} if positions else {}
        found = tokenizer(batch, add_special_tokens=False, verbose=False, **also)
        for number, ids in enumerate(found["input_ids"]):
            ends = [0] * len(ids)
            if positions and ids:
                ends = list(accumulate((end for _, end in found["offset_mapping"][number]), max))
                ends[-1] = len(batch[number])
            yield from ((token, start + number, end) for token, end in zip(ids, ends, strict=True))
            count += len(ids)
            if separator is not None:
                yield separator, start + number, None
                count += 1


def enough_windows(tokens: int, length: int, count: int | None, *, label: str, skip: int = 0) -> int:
    """Return how many windows some tokens give: those that were asked for, or all when None were.

    Args:
        tokens: Tokens that the text has.
        length: Tokens in a window.
        count: Windows wanted.
        label: Name of the text, for messages.
        skip: Tokens to pass over first.

    Raises:
        DataError: There are too few tokens.
    """
    available = max(0, tokens - skip) // length
    if available < (1 if count is None else count):
        raise DataError(
            f"{label} gives {tokens} tokens, {available} windows of {length}"
            + (f" behind the {skip} that are calibrated on" if skip else "")
            + ("" if count is None else f"; {count} were asked for")
            + ": give more text, or fewer or shorter windows"
        )
    return available if count is None else count


def equal_shares(samples: int, sources: int) -> list[int]:
    """Return how many of the samples each source gives; the first ones give what is left over."""
    return [samples // sources + (i < samples % sources) for i in range(sources)]


def calibration_windows(
    sources: Sequence[TextSource], model: Any, tokenizer: Any, *, samples: int, length: int, seed: int
) -> torch.Tensor:
    """Return calibration windows, mixed from the sources in equal shares.

    Args:
        sources: Where the text comes from.
        model: The model, for `self`.
        tokenizer: Its tokenizer.
        samples: Windows in all.
        length: Tokens in a window.
        seed: Seed of the draw.

    Returns:
        Token ids, int64, shape (samples, length).

    Raises:
        DataError: A source cannot be read or is too short, or there are more sources than windows.
    """
    if samples < len(sources):
        raise DataError(f"{len(sources)} text sources need at least as many calibration samples, not {samples}")
    parts = []
    for source, share in portions(sources, samples):
        if source.is_self:
            parts.append(sample_text(model, tokenizer, length, share, seed=seed).input_ids)
        else:
            parts.append(token_windows(source.documents(), tokenizer, length, share, seed=seed, label=source.label))
    return torch.cat(parts)[_order(samples, seed)]


def window_kinds(sources: Sequence[TextSource], samples: int, *, seed: int) -> torch.Tensor:
    """Return which source each of the windows of `calibration_windows` is from.

    Args:
        sources: Where the text comes from.
        samples: Windows in all.
        seed: Seed of the draw.

    Returns:
        Number of the source, one that is named twice counted once: int64, shape (samples,).
    """
    counts = torch.tensor([share for _, share in portions(sources, samples)])
    return torch.arange(len(counts)).repeat_interleave(counts)[_order(samples, seed)]


def portions(sources: Sequence[TextSource], samples: int) -> list[tuple[TextSource, int]]:
    """Return each source with its number of windows; one that is named twice gets two shares of different windows.

    Args:
        sources: The sources.
        samples: Windows in all.
    """
    found: dict[str, tuple[TextSource, int]] = {}
    for source, share in zip(sources, equal_shares(samples, len(sources)), strict=True):
        first, so_far = found.get(_identity(source), (source, 0))
        found[_identity(source)] = (first, so_far + share)
    return list(found.values())


def _order(samples: int, seed: int) -> torch.Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))


_FURTHER = 1_000_003
"""Added to the seed for windows of the model's own that calibration has not seen; far from any seed a person types."""


def further_windows(
    sources: Sequence[TextSource],
    model: Any,
    tokenizer: Any,
    *,
    samples: int,
    length: int,
    seed: int,
    calibrated: Sequence[TextSource],
    calibration_samples: int,
    calibration_length: int,
) -> torch.Tensor:
    """Return windows that calibration does not read, mixed from the sources in equal shares.

    A text that calibration reads as well is drawn in the same order, and windows are taken from behind the tokens
    that calibration takes: no token is in both. Files are the same when their contents are, whatever their names.
    From the model itself they are sampled with another seed.

    Args:
        sources: Where the text comes from; one that is named twice counts once.
        model: The model, for `self`.
        tokenizer: Its tokenizer.
        samples: Windows in all.
        length: Tokens in a window.
        seed: Seed of the calibration's draw.
        calibrated: The calibration's sources.
        calibration_samples: Its windows in all.
        calibration_length: Tokens in each.

    Returns:
        Token ids, int64, shape (samples, length).

    Raises:
        DataError: A source cannot be read or is too short, or there are more sources than windows.
    """
    calibrating = portions(calibrated, calibration_samples)
    taken = {_identity(source): share * calibration_length for source, share in calibrating}
    unique = {_identity(source): source for source in sources}
    if samples < len(unique):
        raise DataError(f"{len(unique)} text sources need at least as many samples to measure on, not {samples}")
    parts = []
    for (identity, source), share in zip(unique.items(), equal_shares(samples, len(unique)), strict=True):
        if source.is_self:
            parts.append(sample_text(model, tokenizer, length, share, seed=seed + _FURTHER).input_ids)
        else:
            skip = taken.get(identity, 0)
            documents = source.documents()
            parts.append(token_windows(documents, tokenizer, length, share, seed=seed, label=source.label, skip=skip))
    return torch.cat(parts)


def _identity(source: TextSource) -> str:
    return source.fingerprint() or source.text
