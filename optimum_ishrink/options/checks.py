"""Checks of option values: type, bounds and allowed values, each with a one-line message."""

from __future__ import annotations

import math
from typing import Any

from ..errors import RequestError, unknown_name
from .option import Option


def clean(entry: Option, value: Any) -> Any:
    """Check a value and return it in the form of the attribute.

    Args:
        entry: The option.
        value: The value as given in Python, YAML or a flag.

    Raises:
        RequestError: The value is not allowed; the message says which are.
    """
    if value is None and entry.optional:
        return None
    if entry.kind == "strings":
        value = _strings(entry.name, value)
    elif entry.kind == "ints":
        value = _ints(entry, value)
    elif entry.kind == "floats":
        value = _floats(entry, value)
    if value == entry.default and type(value) is type(entry.default):
        return value
    _check_type(entry, value)
    items = value if entry.kind in ("strings", "ints", "floats") else (value,)
    allowed = entry.spec.allowed
    for item in items:
        if allowed is not None and item not in allowed:
            raise RequestError(unknown_name(entry.label, str(item), allowed))
    if entry.spec.check is not None:
        entry.spec.check(value)
    return value


def _strings(name: str, value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if isinstance(items, (list, tuple)):
        items = tuple(item.strip() if isinstance(item, str) else item for item in items)
        if all(isinstance(item, str) and item for item in items):
            return items
    raise RequestError(f"{name} must be a list of names, not {value!r}")


def _ints(entry: Option, value: Any) -> tuple[int, ...]:
    least = 1 if entry.spec.ge is None else int(entry.spec.ge)
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    numbers: list[Any] = [int(item) if isinstance(item, str) and item.strip().isdecimal() else item for item in items]
    if not numbers or not all(type(number) is int and number >= least for number in numbers):
        raise RequestError(
            f"{entry.name} must be whole numbers of at least {least}, such as 64 or 64,512, not {value!r}"
        )
    return tuple(dict.fromkeys(numbers))


def _floats(entry: Option, value: Any) -> tuple[float, ...]:
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    try:
        numbers = tuple(math.nan if isinstance(item, bool) else float(item) for item in items)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(_within(entry, number) for number in numbers):
        raise RequestError(f"{entry.name} must be numbers such as 0,10,25, each {_bounds(entry)}, not {value!r}")
    return tuple(dict.fromkeys(numbers))


def _check_type(entry: Option, value: Any) -> None:
    name, spec = entry.name, entry.spec
    if entry.kind == "int":
        least = 1 if spec.ge is None else int(spec.ge)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RequestError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if spec.le is not None and value > spec.le:
            raise RequestError(f"{name} must be at most {int(spec.le)}, not {value!r}")
    elif entry.kind == "float":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _within(entry, value):
            raise RequestError(f"{name} must be {_bounds(entry)}, not {value!r}")
    elif entry.kind == "bool":
        if not isinstance(value, bool):
            raise RequestError(f"{name} must be true or false, not {value!r}")
    elif entry.kind == "str" and not isinstance(value, str):
        if spec.allowed is not None:
            raise RequestError(unknown_name(entry.label, str(value), spec.allowed))
        raise RequestError(f"{name} must be text, not {value!r}")


def _within(entry: Option, value: float) -> bool:
    spec = entry.spec
    above = spec.gt is None or value > spec.gt
    within = (spec.ge is None or value >= spec.ge) and (spec.lt is None or value < spec.lt)
    return math.isfinite(value) and above and within and (spec.le is None or value <= spec.le)


def _bounds(entry: Option) -> str:
    spec = entry.spec
    words = [f"at least {spec.ge:g}"] if spec.ge is not None else []
    words += [f"above {spec.gt:g}"] if spec.gt is not None else []
    words += [f"at most {spec.le:g}"] if spec.le is not None else []
    words += [f"below {spec.lt:g}"] if spec.lt is not None else []
    text = " and ".join(words)
    return f"a number {text}" if text.startswith("above") or not text else text
