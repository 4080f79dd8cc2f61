"""The quantisations of GGUF: which rows fit them, and what llama.cpp stores instead. Arithmetic only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..errors import RequestError, unknown_name

CONVERTER, NUMPY, PROGRAM = "llama.cpp's converter", "gguf", "llama-quantize"
"""What writes a quantisation: llama.cpp's converter, the `gguf` package in numpy, or llama.cpp's `llama-quantize`."""


PLAIN_BLOCK = 32
"""Weights in a block of `PLAIN_TYPES`."""

SYMMETRIC = {"q4_0": 8, "q5_0": 16}
"""Plain types of which a weight is a scale times a whole number from minus this to one less."""

AFFINE = {"q4_1": 15, "q5_1": 31}
"""Plain types of which a weight is a scale times a whole number from 0 to this, plus the block's least value."""


@dataclass(frozen=True)
class TensorType:
    """How GGUF stores a row of weights.

    Args:
        name: Its name.
        block: Weights that share a scale; the length of a row must be a multiple of it.
        nbytes: Bytes of such a block.
        fallback: What llama.cpp uses for a row whose length is not a multiple; None for f16.
    """

    name: str
    block: int
    nbytes: int
    fallback: str | None = None

    def size(self, weights: int) -> int:
        """Return the bytes of a number of weights, in whole blocks."""
        return weights // self.block * self.nbytes


TENSOR_TYPES: Mapping[str, TensorType] = {
    entry.name: entry
    for entry in (
        TensorType("f32", 1, 4),
        TensorType("f16", 1, 2),
        TensorType("bf16", 1, 2),
        TensorType("q8_0", 32, 34),
        TensorType("q5_1", 32, 24),
        TensorType("q5_0", 32, 22),
        TensorType("q4_1", 32, 20),
        TensorType("q4_0", 32, 18),
        TensorType("iq4_nl", 32, 18),
        TensorType("q6_k", 256, 210, "q8_0"),
        TensorType("q5_k", 256, 176, "q5_1"),
        TensorType("q4_k", 256, 144, "q5_0"),
        TensorType("q3_k", 256, 110, "iq4_nl"),
        TensorType("q2_k", 256, 84, "iq4_nl"),
        TensorType("iq4_xs", 256, 136, "iq4_nl"),
    )
}
"""Sizes are those of ggml (a test compares them with the `gguf` package); fallbacks are those of `llama-quantize`."""


@dataclass(frozen=True)
class GgufQuantization:
    """A quantisation of a whole model, by the name that people type.

    Args:
        name: Its name, in lower case.
        tensor_type: What most matrices are stored as.
        written_by: One of `CONVERTER`, `NUMPY`, `PROGRAM`.
        file_type: Number that GGUF's `general.file_type` has for it.
    """

    name: str
    tensor_type: TensorType
    written_by: str
    file_type: int

    @property
    def is_exact(self) -> bool:
        """Whether every weight has 16 bits or more, so that predictions must equal the checkpoint's."""
        return self.tensor_type.block == 1


GGUF_QUANTIZATIONS: Mapping[str, GgufQuantization] = {
    name: GgufQuantization(name, TENSOR_TYPES[tensor_type], written_by, file_type)
    for name, tensor_type, written_by, file_type in (
        ("f32", "f32", CONVERTER, 0),
        ("f16", "f16", CONVERTER, 1),
        ("bf16", "bf16", CONVERTER, 32),
        ("q8_0", "q8_0", CONVERTER, 7),
        ("q5_1", "q5_1", NUMPY, 9),
        ("q5_0", "q5_0", NUMPY, 8),
        ("q4_1", "q4_1", NUMPY, 3),
        ("q4_0", "q4_0", NUMPY, 2),
        ("q6_k", "q6_k", PROGRAM, 18),
        ("q5_k_m", "q5_k", PROGRAM, 17),
        ("q5_k_s", "q5_k", PROGRAM, 16),
        ("q4_k_m", "q4_k", PROGRAM, 15),
        ("q4_k_s", "q4_k", PROGRAM, 14),
        ("q3_k_l", "q3_k", PROGRAM, 13),
        ("q3_k_m", "q3_k", PROGRAM, 12),
        ("q3_k_s", "q3_k", PROGRAM, 11),
        ("q2_k", "q2_k", PROGRAM, 10),
        ("iq4_nl", "iq4_nl", PROGRAM, 25),
        ("iq4_xs", "iq4_xs", PROGRAM, 30),
    )
}


PROGRAM_TYPES: Mapping[str, str] = {
    "q6_k": "Q6_K",
    "q5_k": "Q5_K_S",
    "q4_k": "Q4_K_S",
    "q3_k": "Q3_K_S",
    "q2_k": "Q2_K",
    "iq4_nl": "IQ4_NL",
    "iq4_xs": "IQ4_XS",
}
"""Types of single matrices that `llama-quantize` alone writes, and the quantisation whose matrices are all of this
type with `--pure`."""


EMBEDDING, HEAD = "token_embd.weight", "output.weight"
"""Names of the embedding and of the head in a file. Where there is no head, the embedding is the head too."""


def plain_type(matrix: str, matrices: Collection[str], requested: str) -> str:
    """Return the type of a matrix in a file of one quantisation.

    As in `llama-quantize`, the matrix that gives the logits has more bits than the others: the head, or the embedding
    where it is the head too. llama.cpp uses q6_k there, which numpy cannot write; here it is q8_0.

    Args:
        matrix: The matrix's name in the file.
        matrices: Names of all of them.
        requested: Name of the type of the others.
    """
    head = HEAD if HEAD in matrices else EMBEDDING
    return "q8_0" if matrix == head and TENSOR_TYPES[requested].block > 1 else requested


def parse_gguf_quantization(name: str) -> GgufQuantization:
    """Return a quantisation by its name, in any case.

    Raises:
        RequestError: There is none of this name; the message lists those that exist.
    """
    if name.lower() not in GGUF_QUANTIZATIONS:
        raise RequestError(unknown_name("quantization", name, GGUF_QUANTIZATIONS))
    return GGUF_QUANTIZATIONS[name.lower()]


def stored_as(row: int, requested: TensorType) -> TensorType:
    """Return what llama.cpp stores a row as.

    Args:
        row: Weights in the row.
        requested: The requested type.
    """
    while row % requested.block:
        requested = TENSOR_TYPES[requested.fallback or "f16"]
    return requested


def fits(row: int, type_name: str) -> bool:
    """Whether a row can be stored in a type whose blocks are longer than those of the plain types.

    Rows that do not fit the plain types' blocks of 32 are stored in 16 bits, which any runtime reads; what a K-quant
    falls back to depends on the version of llama.cpp, so that nothing here relies on it.

    Args:
        row: Weights in the row.
        type_name: Name of the type.
    """
    block = TENSOR_TYPES[type_name].block
    return block <= PLAIN_BLOCK or row % block == 0


def bits(type_name: str) -> float:
    """Return the bytes of a weight in a type, scales included.

    Args:
        type_name: Name of the type.
    """
    return TENSOR_TYPES[type_name].nbytes / TENSOR_TYPES[type_name].block


def fitting_type(row: int, wanted: str, types: Collection[str]) -> str | None:
    """Return a type for a row: the wanted one where the row fits it, else the next finer one of some that it fits.

    Args:
        row: Weights in the row.
        wanted: Name of the wanted type.
        types: Names of the types to choose from. Where the row fits no finer one, it gets the finest coarser one.

    Returns:
        Its name; None where the row fits none.
    """
    able = [name for name in (wanted, *sorted(types, key=bits)) if fits(row, name)]
    finer = [name for name in able if bits(name) >= bits(wanted)]
    return finer[0] if finer else able[-1] if able else None


def nearest_multiples(row: int, block: int) -> tuple[int, ...]:
    """Return the nearest multiples of a block below and above a row's length; zero is left out."""
    below = row // block * block
    return tuple(value for value in (below, below + block) if value > 0)
