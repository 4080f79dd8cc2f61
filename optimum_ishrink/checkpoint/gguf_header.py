"""The header of a GGUF file: where it ends, the values in it, and where the tensors are. Weights are not read."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

CHUNK = 2**20
"""Bytes that are fetched at a time. The list of tokens makes headers long: up to some 16 MiB."""

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type's number in GGUF."""
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How the module `struct` reads it."""
_STRING, _ARRAY = 8, 9

Value = str | int | float | list[str] | list[int]
"""A value of a header that `read_values` reads."""


def file_fetcher(file: BinaryIO) -> Callable[[int, int], bytes]:
    """Return what fetches a part of an open file: from its first byte to the one behind the last.

    Args:
        file: The file.
    """

    def fetch(begin: int, end: int) -> bytes:
        file.seek(begin)
        return file.read(end - begin)

    return fetch


class _Reader:
    """Reads forwards in a file that is fetched as far as needed."""

    def __init__(self, fetch: Callable[[int, int], bytes]) -> None:
        self.fetch, self.data, self.place = fetch, bytearray(), 0

    def skip(self, count: int) -> int:
        """Go on behind some bytes; return where they begin."""
        begin, self.place = self.place, self.place + count
        while len(self.data) < self.place:
            more = self.fetch(len(self.data), len(self.data) + CHUNK)
            if not more:
                raise ValueError("its header is cut off")
            self.data += more
        return begin

    def number(self, form: str) -> int:
        """Read a number; `form` is that of the module `struct`."""
        begin = self.skip(struct.calcsize(form))
        return int(struct.unpack_from("<" + form, self.data, begin)[0])

    def string(self) -> str:
        """Read a string."""
        begin = self.skip(length := self.number("Q"))
        return self.data[begin : begin + length].decode("utf-8", "replace")

    def skip_string(self) -> None:
        """Go on behind a string."""
        self.skip(self.number("Q"))

    def value(self, kind: int) -> Value | None:
        """Read a value that is a number, a string, or several of a kind; go on behind any other, and return None."""
        if kind == _STRING:
            return self.string()
        if kind in _FORMS:
            begin = self.skip(_SIZES[kind])
            found: int | float = struct.unpack_from("<" + _FORMS[kind], self.data, begin)[0]
            return found
        if kind != _ARRAY:
            self.skip_value(kind)
            return None
        inner, count = self.number("I"), self.number("Q")
        if inner == _STRING:
            return [self.string() for _ in range(count)]
        if inner in _FORMS:
            begin = self.skip(_SIZES[inner] * count)
            return list(struct.unpack_from(f"<{count}{_FORMS[inner]}", self.data, begin))
        self.skip_values(inner, count)
        return None

    def skip_value(self, kind: int) -> None:
        """Go on behind a value."""
        if kind == _STRING:
            self.skip_string()
        elif kind == _ARRAY:
            self.skip_values(self.number("I"), self.number("Q"))
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise ValueError(f"its header has a value of the unknown type {kind}")

    def skip_values(self, kind: int, count: int) -> None:
        """Go on behind several values of one type."""
        if kind in _SIZES:
            self.skip(_SIZES[kind] * count)
            return
        for _ in range(count):
            self.skip_value(kind)


@dataclass(frozen=True)
class TensorPlace:
    """What a header says of a tensor.

    Args:
        name: Its name.
        lengths: Its lengths, that of a row first.
        kind: Number of its type.
        begin: Its first byte, counted from where the weights begin.
    """

    name: str
    lengths: tuple[int, ...]
    kind: int
    begin: int


def read_header(fetch: Callable[[int, int], bytes]) -> bytes:
    """Return the header of a GGUF file: all before the weights.

    Args:
        fetch: Takes the first byte and the one behind the last; returns what the file has there, which is less at its
            end.

    Raises:
        ValueError: The file is not GGUF of version 2 or 3, or its header is damaged.
    """
    reader, _, _ = _read(fetch)
    return bytes(reader.data[: reader.place])


def read_places(fetch: Callable[[int, int], bytes]) -> tuple[int, list[TensorPlace]]:
    """Return the first byte of the weights in a GGUF file, and where its tensors are.

    Args:
        fetch: As of `read_header`.

    Raises:
        ValueError: The file is not GGUF of version 2 or 3, or its header is damaged.
    """
    reader, alignment, tensors = _read(fetch)
    return reader.place + -reader.place % alignment, tensors


def read_values(fetch: Callable[[int, int], bytes], prefix: str) -> dict[str, Value]:
    """Return the numbers, strings and lists of either in a GGUF file's header whose names begin alike.

    Args:
        fetch: As of `read_header`.
        prefix: What the names begin with, such as `general.`; values of other names are not read.

    Raises:
        ValueError: The file is not GGUF of version 2 or 3, or its header is damaged.
    """
    reader, _, values = _begin(fetch)
    found: dict[str, Value] = {}
    for _ in range(values):
        key, kind = reader.string(), reader.number("I")
        if not key.startswith(prefix):
            reader.skip_value(kind)
        elif (value := reader.value(kind)) is not None:
            found[key] = value
    return found


_ALIGNMENT, _UINT32 = "general.alignment", 4


def _begin(fetch: Callable[[int, int], bytes]) -> tuple[_Reader, int, int]:
    """Return a reader in front of the first value, the number of tensors, and that of values."""
    reader = _Reader(fetch)
    begin = reader.skip(4)
    if reader.data[begin:4] != b"GGUF":
        raise ValueError("it is not a GGUF file")
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"it is GGUF of version {version}; 2 and 3 are read")
    return reader, reader.number("Q"), reader.number("Q")


def _read(fetch: Callable[[int, int], bytes]) -> tuple[_Reader, int, list[TensorPlace]]:
    """Return a reader that has read the header, the alignment of the weights, and the tensors."""
    reader, count, values = _begin(fetch)
    alignment = 32
    for _ in range(values):
        key, kind = reader.string(), reader.number("I")
        if key == _ALIGNMENT and kind == _UINT32:
            alignment = max(1, reader.number("I"))
        else:
            reader.skip_value(kind)
    tensors = []
    for _ in range(count):
        name = reader.string()
        lengths = tuple(reader.number("Q") for _ in range(reader.number("I")))
        tensors.append(TensorPlace(name, lengths, reader.number("I"), reader.number("Q")))
    return reader, alignment, tensors
