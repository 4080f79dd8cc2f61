from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from optimum_ishrink.edge.gguf_quantizations import (
    GGUF_QUANTIZATIONS,
    PROGRAM,
    PROGRAM_TYPES,
    TENSOR_TYPES,
    fits,
    fitting_type,
)
from optimum_ishrink.edge.program_types import Rows, quantized_by_program
from optimum_ishrink.edge.programs import check_program
from optimum_ishrink.edge.write_gguf import quantize_file
from optimum_ishrink.errors import RequestError, SourceError
from tests.helpers import stand_in_quantizer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell script stands for the program")
needs_program = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason="llama-quantize is not on the PATH")

BF16 = gguf.GGMLQuantizationType.BF16


def rows(name: str) -> Rows:
    draw = np.random.default_rng(len(name)).standard_normal((6, 512)).astype(np.float32)
    return gguf.quants.quantize(draw, BF16), BF16


def distance(values: np.ndarray[Any, Any], name: str) -> float:
    expected = gguf.quants.dequantize(*rows(name))
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def test_matrices_come_back_in_the_types_that_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_quantizer.install(tmp_path / "bin", monkeypatch)
    types = {"a": "q6_k", "bb": "q4_k", "ccc": "q6_k"}
    with quantized_by_program(types, rows, tmp_path) as written:
        assert {name: each.kind.name.lower() for name, each in written.items()} == types
        near = {name: distance(each.values(), name) for name, each in written.items()}
        assert [each.data.shape for each in written.values()] == [(6, 420), (6, 420), (6, 288)]
    assert max(near["a"], near["ccc"]) < 0.03 < near["bb"] < 0.15
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    with quantized_by_program({}, rows, tmp_path) as written:
        assert written == {}


@needs_program
@pytest.mark.parametrize("name", PROGRAM_TYPES)
def test_the_program_writes_every_type_for_single_matrices(name: str, tmp_path: Path) -> None:
    with quantized_by_program({"a": name, "bb": name}, rows, tmp_path) as written:
        assert {each.kind.name.lower() for each in written.values()} == {name}
        bits = written["a"].data.nbytes / written["a"].values().size
        assert bits == TENSOR_TYPES[name].nbytes / TENSOR_TYPES[name].block
        for matrix, each in written.items():
            assert distance(each.values(), matrix) < 0.4


def test_a_program_that_fails_or_stores_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_quantizer.install(tmp_path / "bin", monkeypatch, "echo 'error: this is odd' >&2; exit 1")
    with (
        pytest.raises(SourceError, match="llama-quantize failed: this is odd"),
        quantized_by_program({"a": "q6_k"}, rows, tmp_path),
    ):
        pass
    stand_in_quantizer.install(tmp_path / "bin", monkeypatch, 'cp "$2" "$3"')
    with (
        pytest.raises(SourceError, match="stored a as bf16 where q6_k was asked for; leave out q6_k"),
        quantized_by_program({"a": "q6_k"}, rows, tmp_path),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check_program([])
    with pytest.raises(RequestError, match="q6_k, q4_k are written by llama.cpp's program llama-quantize"):
        check_program(["q6_k", "q4_k"])


def test_a_file_has_the_programs_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_quantizer.install(tmp_path / "bin", monkeypatch)
    writer = gguf.GGUFWriter(tmp_path / "exact.gguf", "llama")
    for name in ("a.weight", "b.weight", "c.weight"):
        writer.add_tensor(name, rows(name)[0], raw_dtype=BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    types = {"a.weight": "q6_k", "b.weight": "q8_0", "c.weight": "bf16"}
    quantize_file(tmp_path / "exact.gguf", tmp_path / "mixed.gguf", GGUF_QUANTIZATIONS["q8_0"], types)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "mixed.gguf").tensors}
    assert {name: tensor.tensor_type.name.lower() for name, tensor in found.items()} == types
    with quantized_by_program({"a.weight": "q6_k"}, rows, tmp_path) as written:
        assert np.array_equal(found["a.weight"].data, written["a.weight"].data)
    assert np.array_equal(found["c.weight"].data, rows("c.weight")[0])


def test_rows_have_the_next_finer_type_that_they_fit() -> None:
    types = ["q8_0", "q6_k", "q5_0", "q4_k", "q3_k"]
    assert fits(512, "q4_k") and not fits(576, "q4_k") and fits(576, "q4_0") and fits(48, "q4_0")
    assert fitting_type(512, "q4_k", types) == "q4_k"
    assert fitting_type(576, "q3_k", types) == fitting_type(576, "q4_k", types) == "q5_0"
    assert fitting_type(576, "q6_k", types) == "q8_0"
    assert fitting_type(576, "q6_k", ["q6_k", "q4_0"]) == "q4_0"
    assert fitting_type(576, "q6_k", ["q6_k", "q4_k"]) is None
