"""GGUF files of a model: one of 16 bits, and from it files whose matrices have types of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.source import Source
from ..core.output import staged_file
from ..edge.gguf_file import HeaderValue
from ..edge.gguf_quantizations import GGUF_QUANTIZATIONS, TENSOR_TYPES
from ..edge.gguf_tokenizer import find_gguf_tokenizer
from ..edge.rounded_matrices import RoundedMatrices
from ..edge.write_gguf import quantize_file, write_gguf


def write_base_file(source: Source, path: Path, pre_tokenizer: str | None = None) -> None:
    """Write a checkpoint as a GGUF file of 16 bits: what files with other types are made from.

    Args:
        source: The checkpoint.
        path: The file; it appears whole or not at all.
        pre_tokenizer: What llama.cpp calls its pre-tokenizer; found by the tokenizer by default.

    Raises:
        SourceError: The converter does not know the architecture or its tokenizer.
    """
    tokenizer = find_gguf_tokenizer(source.folder, source.load_tokenizer(), pre_tokenizer)
    write_gguf(
        source.folder, sixteen_bits(source), path, name=source.display_name, tokenizer=tokenizer, overwrite=True
    )


def sixteen_bits(source: Source) -> Any:
    """Return the 16-bit type that a checkpoint's matrices have, bf16 or f16.

    Args:
        source: The checkpoint.
    """
    dtypes = {tensor.dtype for tensor in source.tensors.values() if len(tensor.shape) > 1}
    return GGUF_QUANTIZATIONS["f16" if dtypes == {"F16"} else "bf16"]


def write_mixed_file(
    exact: Path,
    types: Mapping[str, str],
    path: Path,
    *,
    general: Sequence[HeaderValue] | None = None,
    rounded: RoundedMatrices | None = None,
    overwrite: bool = False,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a file whose matrices have types of their own.

    Args:
        exact: The file of 16 bits.
        types: Names of types, by the matrix's name in the file.
        path: The file; it appears whole or not at all.
        general: What its header says of the model in general (see `Template.general`); None for what `exact` says.
        rounded: Matrices that are rounded already; the others have the nearest values.
        overwrite: Replace an existing file.
        check: Called with the staged file. If it raises, nothing is written.
    """
    counts: dict[str, int] = {}
    for each in types.values():
        counts[each] = counts.get(each, 0) + 1
    most = max(counts, key=lambda name: (counts[name], TENSOR_TYPES[name].block))
    named = next(each for each in GGUF_QUANTIZATIONS.values() if each.tensor_type.name == most)
    with staged_file(path, overwrite=overwrite) as staged:
        quantize_file(exact, staged, named, types, general, rounded)
        if check is not None:
            check(staged)
