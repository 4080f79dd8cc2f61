"""A GGUF file as the benchmark sees it, and its place in the system's file cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import SourceError
from .convert import check_is_gguf
from .quantization import QUANTIZATIONS

_CHUNK = 16 * 2**20


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


def warm(path: Path) -> None:
    """Read a file once, so that the system holds it in its cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(_CHUNK):
            pass


def evict(path: Path) -> bool:
    """Ask the system to drop a file from its cache, and return whether it did."""
    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as file:
        os.fsync(file.fileno())  # what is not yet on the disk would stay
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    share = cached_share(path)
    return share is not None and share < 0.01


def cached_share(path: Path) -> float | None:
    """Return the share of a file's pages that the system holds in its cache; None where it does not tell."""
    if sys.platform != "linux":
        return None
    import numpy

    library = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as view:
        data = numpy.frombuffer(view, dtype=numpy.uint8)
        resident = (ctypes.c_ubyte * pages)()
        failed = library.mincore(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(size), resident)
        del data  # the view cannot be closed under it
    return None if failed else sum(entry & 1 for entry in resident) / pages
