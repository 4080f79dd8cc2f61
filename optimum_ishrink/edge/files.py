"""A GGUF file as the benchmark sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import SourceError
from .convert import check_is_gguf
from .quantization import QUANTIZATIONS


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says of itself.

    Args:
        path: The file.
        name: What reports call it.
        params: Weights in all tensors.
        nbytes: Bytes of the file.
        quantization: Its quantisation's name, or what its header says where this package has no name for it.
        vocabulary: Tokens.
        architecture: What llama.cpp calls its architecture.
        context: Tokens that it was trained to read at most; None where the file does not say.
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
        name: What reports shall call it; the file's own name by default.

    Raises:
        SourceError: It is not a GGUF file, or a damaged one.
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
        names = {entry.file_type: entry.name for entry in QUANTIZATIONS.values()}
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
    except Exception as error:  # the reader raises many types for a file that is not what it says
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(f"cannot read {path} as GGUF ({reason})") from None
