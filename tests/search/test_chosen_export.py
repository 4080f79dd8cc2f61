from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink import IShrinker
from optimum_ishrink.checkpoint.source import Source
from optimum_ishrink.cli.program import main
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.errors import RequestError, ShapeError
from optimum_ishrink.search import chosen_export
from tests.helpers import made_up_device


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up_device.install(monkeypatch)
    monkeypatch.setattr(chosen_export, "LENGTH", 24)
    monkeypatch.setattr(chosen_export, "WINDOWS", 2)


def export(source: Source, path: Path, target: str, **more: Any) -> Any:
    return IShrinker(source, dtype="float32").export(path, quantization="mixed", target=target, verify=False, **more)


def test_a_file_of_so_many_bytes_has_types_by_matrix(base_source: Source, tmp_path: Path) -> None:
    found = export(base_source, tmp_path / "small.gguf", "bytes=-15%")
    assert (tmp_path / "small.gguf").stat().st_size == found.nbytes
    assert found.quantization.startswith("mixed: ") and "q8_0" in found.quantization and "q5_0" in found.quantization
    less = export(base_source, tmp_path / "less.gguf", "bytes=-30%")
    assert less.nbytes < found.nbytes


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
