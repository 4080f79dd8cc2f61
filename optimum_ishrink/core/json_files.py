"""Reading and writing JSON files: readable layout, atomic replacement, errors in one line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError


def without_non_finite(value: Any) -> Any:
    """Return plain values with None for every NaN and infinity: JSON has no name for them.

    Args:
        value: Plain values: mappings, lists and tuples, nested as deep as needed, of scalars.
    """
    if value is None or isinstance(value, (str, int)):
        return value  # most values are, and the checks below are slower
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        # A plan can hold millions of indices, which are all finite.
        return value if all(type(item) is int for item in value) else [without_non_finite(item) for item in value]
    return value


def write_json(path: Path, data: Any) -> None:
    """Write JSON with one entry per line, and long lists of numbers compactly on one line.

    NaN and infinities are null. The file is written under a temporary name and renamed, so that it is complete at any
    time.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        staged.write_text(_dump(without_non_finite(data), 0) + "\n", encoding="utf-8")
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _dump(value: Any, indent: int) -> str:
    if value is None or isinstance(value, (str, int, float)):
        return _encode(value)
    if isinstance(value, Mapping) and value:
        pad = " " * (indent + 2)
        body = ",\n".join(f"{pad}{_encode(str(key))}: {_dump(item, indent + 2)}" for key, item in value.items())
        return "{\n" + body + "\n" + " " * indent + "}"
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (Mapping, list, tuple)):
        pad = " " * (indent + 2)
        return "[\n" + ",\n".join(pad + _dump(item, indent + 2) for item in value) + "\n" + " " * indent + "]"
    return _encode(value)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        SourceError: It is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{path} does not exist") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from None
    except ValueError as error:
        raise SourceError(f"{path} is not JSON ({error})") from None
