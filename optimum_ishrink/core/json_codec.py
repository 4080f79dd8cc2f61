"""Convert records to JSON and back: the type hints of a class define its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import SourceError, unknown_name

Record = TypeVar("Record")

_Reader = Callable[[Any, str, str], Any]
"""Takes a value, its location in the file and the kind of file; returns the value as its class declares it."""

_SCALARS: Mapping[type, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a string"),
    bool: ((bool,), "true or false"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    NoneType: ((NoneType,), "null"),
}
"""Declared type to the Python types that JSON gives for it, and its name in messages."""


_RARE = "rare"


def rare_entry() -> Any:
    """Return the default of a record's entry that few files have: None, and then it is not written at all."""
    return field(default=None, metadata={_RARE: True})


def to_plain(value: Any) -> Any:
    """Return a record as plain JSON values: an object for each record and mapping, a list for each sequence.

    Args:
        value: A record, or any value that a record can contain.
    """
    if is_dataclass(value):
        written = ((entry, getattr(value, entry.name)) for entry in fields(value))
        return {
            entry.name: to_plain(item)
            for entry, item in written
            if not (item is None and entry.metadata.get(_RARE, False))
        }
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def from_plain(cls: type[Record], data: Any, *, kind: str) -> Record:
    """Build a record from a JSON object, driven by the type hints of its class.

    Hints may be scalars, `Any` (the value is not changed), records, `X | None`, `Mapping[str, X]`, `tuple[X, ...]`
    and `tuple[X, Y]`, nested as deep as needed.

    Args:
        cls: A dataclass.
        data: The JSON object.
        kind: What messages call it, such as `"plan"`.

    Raises:
        SourceError: An entry is unknown, missing, or not of the type that its class declares.
    """
    hint: Any = cls
    record: Record = _reader(hint)(data, "", kind)
    return record


@cache
def _reader(hint: Any) -> _Reader:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value, place, kind: value
    if hint in _SCALARS:
        return _scalar_reader(hint)
    if is_dataclass(hint):
        return _record_reader(hint)
    if origin in (Union, UnionType):
        return _union_reader(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return _list_reader(arguments[0])
    if origin is tuple:
        return _row_reader(arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping_reader(arguments[1])
    raise TypeError(f"no JSON form for {hint}")


def _fits(value: Any, hint: type) -> bool:
    allowed, _ = _SCALARS[hint]
    # bool is a subclass of int, but it is not a number here.
    return isinstance(value, allowed) and (hint is bool or not isinstance(value, bool))


def _scalar_reader(hint: type) -> _Reader:
    def read(value: Any, place: str, kind: str) -> Any:
        if not _fits(value, hint):
            raise _wrong_type(value, place, kind, _SCALARS[hint][1])
        return value

    return read


def _record_reader(cls: Any) -> _Reader:
    def read(value: Any, place: str, kind: str) -> Any:
        if not isinstance(value, Mapping):
            raise _wrong_type(value, place, kind, "an object")
        hints = _hints(cls)
        needed = {each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING}
        for key in value:
            if key not in hints:
                raise SourceError(unknown_name(f"entry of {f'{place} in ' if place else ''}the {kind}", key, hints))
        if missing := needed - set(value):
            raise SourceError(f"this {kind} lacks {', '.join(sorted(_inside(place, name) for name in missing))}")
        return cls(**{key: _reader(hints[key])(item, _inside(place, key), kind) for key, item in value.items()})

    return read


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {entry.name: hints[entry.name] for entry in fields(cls)}


def _union_reader(hints: tuple[Any, ...]) -> _Reader:
    scalars = [hint for hint in hints if hint in _SCALARS]
    (structure,) = [hint for hint in hints if hint not in _SCALARS] or (None,)

    def read(value: Any, place: str, kind: str) -> Any:
        if any(_fits(value, hint) for hint in scalars):
            return value
        if structure is not None:
            return _reader(structure)(value, place, kind)
        raise _wrong_type(value, place, kind, " or ".join(_SCALARS[hint][1] for hint in scalars))

    return read


def _list_reader(hint: Any) -> _Reader:
    def read(value: Any, place: str, kind: str) -> Any:
        if not isinstance(value, (list, tuple)):
            raise _wrong_type(value, place, kind, "a list")
        if hint in _SCALARS and all(_fits(item, hint) for item in value):
            return tuple(value)  # a plan can hold millions of indices
        return tuple(_reader(hint)(item, f"{place}[{number}]", kind) for number, item in enumerate(value))

    return read


def _row_reader(hints: tuple[Any, ...]) -> _Reader:
    def read(value: Any, place: str, kind: str) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != len(hints):
            raise _wrong_type(value, place, kind, f"a list of {len(hints)}")
        pairs = enumerate(zip(hints, value, strict=True))
        return tuple(_reader(hint)(item, f"{place}[{number}]", kind) for number, (hint, item) in pairs)

    return read


def _mapping_reader(hint: Any) -> _Reader:
    def read(value: Any, place: str, kind: str) -> Any:
        if not isinstance(value, Mapping):
            raise _wrong_type(value, place, kind, "an object")
        return {key: _reader(hint)(item, _inside(place, key), kind) for key, item in value.items()}

    return read


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _wrong_type(value: Any, place: str, kind: str, expected: str) -> SourceError:
    shown = repr(value)
    if len(shown) > 40:
        shown = shown[:37] + "..."
    return SourceError(f"this {kind} is damaged: {place or 'it'} is {shown}, not {expected}")
