from __future__ import annotations

import gguf
import pytest

from optimum_ishrink.edge.gguf_quantizations import (
    GGUF_QUANTIZATIONS,
    TENSOR_TYPES,
    nearest_multiples,
    parse_gguf_quantization,
    stored_as,
)
from optimum_ishrink.errors import RequestError


def test_sizes_are_those_of_ggml() -> None:
    for name, entry in TENSOR_TYPES.items():
        expected = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
        assert (entry.block, entry.nbytes) == expected, name
        assert entry.fallback is None or entry.fallback in TENSOR_TYPES


def test_file_types_are_those_of_gguf() -> None:
    numbers = {entry.name.removeprefix("MOSTLY_").removeprefix("ALL_").lower(): entry for entry in gguf.LlamaFileType}
    for name, entry in GGUF_QUANTIZATIONS.items():
        assert entry.file_type == numbers[name], name


@pytest.mark.parametrize(
    ("row", "wanted", "stored"),
    [(512, "q4_k", "q4_k"), (576, "q4_k", "q5_0"), (576, "q6_k", "q8_0"), (88, "q4_k", "f16"), (88, "q8_0", "f16")],
)
def test_a_row_that_does_not_fit_falls_back(row: int, wanted: str, stored: str) -> None:
    assert stored_as(row, TENSOR_TYPES[wanted]).name == stored


def test_nearest_multiples() -> None:
    assert nearest_multiples(1152, 256) == (1024, 1280)
    assert nearest_multiples(20, 32) == (32,)


def test_an_unknown_quantisation_names_the_nearest() -> None:
    assert parse_gguf_quantization("Q8_0").name == "q8_0"
    with pytest.raises(RequestError, match=r"unknown quantization 'q4_k' \(did you mean 'q4_k_s'\?\)"):
        parse_gguf_quantization("q4_k")
