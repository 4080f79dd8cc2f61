"""Reading the header of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.whole_gguf import check_is_gguf
from ..errors import SourceError, one_line
from .gguf_quantizations import GGUF_QUANTIZATIONS


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file.

    Args:
        path: The file.
        name: Its name in reports.
        params: Weights in all tensors.
        nbytes: Bytes of the file.
        quantization: Its quantisation's name, or the header's number where this package has no name for it.
        vocabulary: Number of tokens.
        architecture: Its architecture, as llama.cpp names it.
        context: The longest context that it was trained for, in tokens; None where the header does not say.
    """

    path: Path
    name: str
    params: int
    nbytes: int
    quantization: str
    vocabulary: int
    architecture: str
    context: int | None = None


def read_gguf(path: Path, name: str | None = None) -> GgufFile:
    """Read a GGUF file's header.

    Args:
        path: The file.
        name: Its name in reports; the file's name by default.

    Raises:
        SourceError: It is not a GGUF file, or it is damaged.
    """
    check_is_gguf(path)
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        number = reader.get_field("general.file_type")
        tokens = reader.get_field("tokenizer.ggml.tokens")
        architecture = reader.get_field("general.architecture")
        kind = "unknown" if architecture is None else str(architecture.contents())
        context = reader.get_field(f"{kind}.context_length")
        params = sum(int(tensor.n_elements) for tensor in reader.tensors)
        file_type = None if number is None else int(number.contents())
        names = {entry.file_type: entry.name for entry in GGUF_QUANTIZATIONS.values()}
        return GgufFile(
            path,
            name or path.name,
            params,
            path.stat().st_size,
            "unknown" if file_type is None else names.get(file_type, f"file type {file_type}"),
            0 if tokens is None else len(tokens.data),
            kind,
            None if context is None else int(context.contents()),
        )
    except Exception as error:  # the reader raises many types for a damaged file
        reason = one_line(error)
        raise SourceError(f"cannot read {path} as GGUF ({reason})") from None


@dataclass(frozen=True)
class HeaderValue:
    """A value of a header.

    Args:
        key: Its key.
        value: The value.
        kind: Its type.
        inner: The type of an array's values; None for what is no array.
    """

    key: str
    value: Any
    kind: Any
    inner: Any


def header_values(reader: Any) -> list[HeaderValue]:
    """Return the values of a file's header, without what describes the header itself.

    Args:
        reader: A `gguf.GGUFReader`.
    """
    import gguf

    found = []
    for field in reader.fields.values():
        if not field.name.startswith("GGUF."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            found.append(HeaderValue(field.name, field.contents(), kind, inner))
    return found
