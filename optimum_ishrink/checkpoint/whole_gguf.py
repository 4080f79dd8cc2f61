"""Whether a GGUF file holds all that its header tells of."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

from ..errors import SourceError
from .gguf_header import file_fetcher, read_places


def check_is_gguf(path: Path) -> None:
    """Check that a file is GGUF.

    Raises:
        SourceError: It is not, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from None
    if magic != b"GGUF":
        raise SourceError(f"{path} is not a GGUF file; name one, or a checkpoint folder")


def check_whole(path: Path) -> None:
    """Check that a file holds what its header says: every tensor, whole, in a type that is known here.

    A file whose download broke off is opened without complaint, and fails where it runs.

    Args:
        path: The file.

    Raises:
        SourceError: It is no GGUF file, its end is missing, or it has a tensor of an unknown type.
    """
    check_is_gguf(path)
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    with path.open("rb") as file:
        try:
            weights, tensors = read_places(file_fetcher(file))
        except ValueError as error:
            raise SourceError(f"cannot read {path} as GGUF ({error}); download or export it again") from None
    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items() if isinstance(kind, GGMLQuantizationType)}
    end = weights
    for tensor in tensors:
        if tensor.kind not in sizes:
            raise SourceError(
                f"{path} has {tensor.name} in the type number {tensor.kind}, which this version does not know; "
                "name a file of another quantization"
            )
        block, nbytes = sizes[tensor.kind]
        end = max(end, weights + tensor.begin + prod(tensor.lengths) // block * nbytes)
    if path.stat().st_size < end:
        raise SourceError(
            f"{path} is cut short: its header tells of {end:,} bytes, and it has {path.stat().st_size:,}; download or "
            "export it again"
        )
