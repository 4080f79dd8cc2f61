from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from optimum_ishrink import IShrinker
from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.cli.program import main
from optimum_ishrink.edge import rounded_matrices
from optimum_ishrink.edge.gguf_quantizations import parse_gguf_quantization
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.edge.same_model import check_same_model
from optimum_ishrink.edge.write_gguf import quantize_file
from optimum_ishrink.errors import DataError, RequestError, ShapeError
from optimum_ishrink.search import chosen_export
from tests.helpers import made_up_device
from tests.helpers.base_file import write_base_file
from tests.helpers.tokenizer_kinds import byte_level
from tests.helpers.trimmed_gguf import save_model


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up_device.install(monkeypatch)
    monkeypatch.setattr(chosen_export, "LENGTH", 24)
    monkeypatch.setattr(chosen_export, "WINDOWS", 2)
    whole = IShrinker._config

    def little(self: IShrinker, config: Any, changes: Any) -> Any:
        return whole(self, config, {"calibration_samples": 6, "calibration_length": 16, **changes})

    monkeypatch.setattr(IShrinker, "_config", little)


def export(source: Source, path: Path, target: str, **more: Any) -> Any:
    return IShrinker(source, dtype="float32").export(path, quantization="mixed", target=target, verify=False, **more)


def test_a_file_of_so_many_bytes_has_types_by_matrix(base_source: Source, tmp_path: Path) -> None:
    found = export(base_source, tmp_path / "small.gguf", "bytes=-15%")
    assert (tmp_path / "small.gguf").stat().st_size == found.nbytes
    assert found.quantization.startswith("mixed: ") and "q8_0" in found.quantization and "q5_0" in found.quantization
    less = export(base_source, tmp_path / "less.gguf", "bytes=-30%")
    assert less.nbytes < found.nbytes


def test_a_plain_file_is_rounded_for_what_it_computes(base_source: Source, text_file: Path, tmp_path: Path) -> None:
    shrinker = IShrinker(base_source, dtype="float32")
    found = shrinker.export(
        tmp_path / "small.gguf", quantization="Q4_0", rounding="calibrated", calibration=[str(text_file)], verify=False
    )
    assert found.quantization == "q4_0, calibrated rounding"
    exact = write_base_file(base_source, tmp_path / "exact.gguf")
    quantize_file(exact, tmp_path / "nearest.gguf", parse_gguf_quantization("q4_0"))
    check_same_model(exact, tmp_path / "small.gguf")
    ours, nearest = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / name).tensors}
        for name in ("small.gguf", "nearest.gguf")
    )
    assert {name: each.tensor_type for name, each in ours.items()} == {
        name: each.tensor_type for name, each in nearest.items()
    }
    matrices = [name for name, each in ours.items() if name.startswith("blk.") and len(each.shape) == 2]
    assert not any(np.array_equal(ours[name].data, nearest[name].data) for name in matrices)
    with pytest.raises(DataError, match="missing"):
        shrinker.export(tmp_path / "x.gguf", quantization="q4_0", rounding="calibrated", calibration=["missing.txt"])
    with pytest.raises(RequestError, match="rounds to q8_0, q5_1, q5_0, q4_1, q4_0 of --format gguf, not to f16"):
        ExportOptions(rounding="calibrated")
    with pytest.raises(RequestError, match="of --format gguf, not to int8"):
        ExportOptions(rounding="calibrated", format="safetensors")
    with pytest.raises(RequestError, match="--calibration belongs to --rounding calibrated"):
        ExportOptions(quantization="q4_0", calibration=["self"])


def test_matrices_that_keep_the_nearest_values_are_named_once(
    base_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def noted() -> list[str]:
        return [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("the nearest values are kept")
        ]

    found = export(base_source, tmp_path / "small.gguf", "bytes=-15%")
    matrices = sum(len(tensor.shape) == 2 for tensor in gguf.GGUFReader(found.path).tensors)
    (line,) = noted()
    assert f"in 1 of {matrices} matrices: 1 that no linear layer multiplies" in line
    monkeypatch.setattr(rounded_matrices, "find_rows", lambda *_: None)
    export(base_source, tmp_path / "less.gguf", "bytes=-15%")
    (line,) = noted()
    assert f"in {matrices} of {matrices} matrices: {matrices} whose values in the file are not those" in line


def test_rows_that_no_block_divides_stay_in_16_bits_or_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>", model_max_length=512
    )
    source = open_source(save_model(tmp_path / "odd", tokenizer, num_hidden_layers=2, intermediate_size=80))
    found = export(source, tmp_path / "small.gguf", "bytes=-15%")
    assert "down_proj stay in 16 bits: their rows are no multiples of 32 weights" in capsys.readouterr().err
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(found.path).tensors}
    assert kinds["blk.0.ffn_down.weight"] == "BF16" and kinds["blk.0.ffn_up.weight"] != "BF16"
    with pytest.raises(ShapeError, match=r"q4_0 needs rows that are multiples of 32, and those of .*down_proj"):
        IShrinker(source).export(tmp_path / "x.gguf", quantization="q4_0", rounding="calibrated", verify=False)


def test_what_cannot_be_kept_or_asked_is_refused(
    base_source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ShapeError, match="the smallest file has 0.1 MB; `ishrink search` prunes as well"):
        export(base_source, tmp_path / "small.gguf", "bytes=1kB")
    for target in ("decode=+10%", "bytes=1MB,params=-5%"):
        with pytest.raises(RequestError, match="a mixed export has a budget of bytes"):
            export(base_source, tmp_path / "small.gguf", target)
    with pytest.raises(RequestError, match=r"does not end in \.gguf"):
        export(base_source, tmp_path / "small.bin", "bytes=1MB")
    assert list(tmp_path.iterdir()) == []
    for options in (
        {"quantization": "mixed"},
        {"target": "bytes=1MB"},
        {"quantization": "q4_0", "target": "bytes=1MB"},
    ):
        with pytest.raises(RequestError, match="chooses a type for each matrix of a GGUF file under a budget"):
            ExportOptions(**options)
    with pytest.raises(RequestError, match="of a GGUF file"):
        ExportOptions(quantization="mixed", target="bytes=1MB", format="safetensors")
    words = ["export", "--model", str(base_source.folder), "--quantization", "mixed", "--output", "x.gguf"]
    assert main(words) == 2
    assert "needs one: --target bytes=80MB" in capsys.readouterr().err
