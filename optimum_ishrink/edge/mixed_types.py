"""The types that single matrices of a GGUF file can have, as users name them."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import RequestError, unknown_name
from .gguf_quantizations import GGUF_QUANTIZATIONS, PROGRAM, PROGRAM_TYPES, TENSOR_TYPES

MIXED_TYPES = ("q8_0", "q5_0", "q4_0")
"""Types to choose from: those that every build of llama.cpp runs fast, and that need no other program to write."""

TYPES = tuple(name for name in TENSOR_TYPES if name != "f32")
"""All of them. Those of `PROGRAM_TYPES` need llama.cpp's program."""

TYPES_HELP = (
    "types that matrices can have: q8_0, q5_1, q5_0, q4_1, q4_0; with llama.cpp's llama-quantize on the PATH also "
    f"{', '.join(PROGRAM_TYPES)}; bf16 or f16 for the checkpoint's own bits"
)


def check_quantizations(names: Sequence[str]) -> None:
    """Check that types of single matrices exist.

    Args:
        names: Their names.

    Raises:
        RequestError: One does not exist, is a mix of several types, or is named twice.
    """
    for name in names:
        if name.lower() in TYPES:
            continue
        mix = GGUF_QUANTIZATIONS.get(name.lower())
        if mix is not None and mix.written_by == PROGRAM:
            raise RequestError(
                f"{mix.name} is a mix of types that llama.cpp chooses; here types are chosen matrix by matrix: name "
                f"{mix.tensor_type.name}, or several, such as q6_k,q5_k,q4_k"
            )
        raise RequestError(unknown_name("quantization", name, TYPES))
    lower = [name.lower() for name in names]
    if len(set(lower)) < len(lower) or not lower:
        raise RequestError("name each quantization once, and at least one")
