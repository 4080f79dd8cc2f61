"""What is said where a place does not hold the file that a checkpoint is read from."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import SourceError


def no_config(place: str, names: Iterable[str]) -> SourceError:
    """Return the error of a place without config.json.

    Args:
        place: The folder or URL, for the message.
        names: Names of its files.
    """
    ggufs = _ggufs(names)
    hint = f"; it holds {ggufs[0]}: pass it as gguf_file" if ggufs else ""
    return SourceError(f"{place} holds no config.json{hint}")


def no_gguf(place: str, gguf_file: str, names: Iterable[str]) -> SourceError:
    """Return the error of a place without a GGUF file.

    Args:
        place: The folder, Hub id or URL, for the message.
        gguf_file: The file that was asked for.
        names: Names of its files.
    """
    return SourceError(f"{place} holds no {gguf_file!r}; GGUF files there: {', '.join(_ggufs(names)) or 'none'}")


def _ggufs(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".gguf"))
