from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from optimum_ishrink.checkpoint.config_source import open_config
from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.errors import SourceError
from tests.helpers.memory_storage import memory


def _put(folder: Path, files: MemoryFileSystem, path: str) -> None:
    for file in folder.iterdir():
        files.put_file(str(file), f"{path}/{file.name}")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISHRINK_CACHE", str(tmp_path / "cache"))


def test_a_checkpoint_at_a_url_is_the_same_checkpoint(llama_folder: Path) -> None:
    with memory() as files:
        _put(llama_folder, files, "/bucket/tiny")
        files.pipe_file("/bucket/tiny/pytorch_model.bin", b"never fetched")
        source = open_source("memory://bucket/tiny/")
        source.check()
        assert source.name == "memory://bucket/tiny"
        assert source.display_name == "tiny"
        assert source.nbytes == open_source(llama_folder).nbytes
        assert not (source.folder / "pytorch_model.bin").exists()
        assert open_source("memory://bucket/tiny").folder == source.folder


def test_what_changed_is_fetched_again(llama_folder: Path) -> None:
    with memory() as files:
        _put(llama_folder, files, "/bucket/tiny")
        before = open_source("memory://bucket/tiny").folder
        files.pipe_file("/bucket/tiny/config.json", files.cat_file("/bucket/tiny/config.json") + b" ")
        after = open_source("memory://bucket/tiny").folder
        assert before != after
        assert (after / "config.json").read_bytes() == files.cat_file("/bucket/tiny/config.json")


def test_of_a_config_no_weights_are_fetched(llama_folder: Path) -> None:
    with memory() as files:
        _put(llama_folder, files, "/bucket/tiny")
        source = open_config("memory://bucket/tiny")
        assert source.name == "memory://bucket/tiny"
        assert source.binding.num_parameters() == open_source(llama_folder).binding.num_parameters()
        assert not list(source.folder.glob("*.safetensors"))


def test_folders_deep_below_are_not_of_the_checkpoint(llama_folder: Path) -> None:
    with memory() as files:
        _put(llama_folder, files, "/bucket/tiny")
        files.pipe_file("/bucket/tiny/additional_chat_templates/tool.jinja", b"{{ 1 }}")
        files.pipe_file("/bucket/tiny/a/b/tokenizer_config.json", b"{}")
        folder = open_source("memory://bucket/tiny").folder
        assert (folder / "additional_chat_templates" / "tool.jinja").is_file()
        assert not (folder / "a").exists()


@pytest.mark.parametrize("open_model", [open_source, open_config])
def test_a_gguf_file_is_fetched_where_it_is_asked_for(open_model: Callable[..., Source]) -> None:
    with memory() as files:
        files.pipe_file("/bucket/tiny/model.gguf", b"not at all")
        with pytest.raises(SourceError, match=r"holds no config\.json; it holds model\.gguf: pass it as gguf_file"):
            open_model("memory://bucket/tiny")
        with pytest.raises(SourceError, match=r"holds no 'x\.gguf'; GGUF files there: model\.gguf"):
            open_model("memory://bucket/tiny", gguf_file="x.gguf")
        with pytest.raises(SourceError, match=r"model\.gguf (is not a|as) GGUF"):
            open_model("memory://bucket/tiny", gguf_file="model.gguf")


def test_a_place_without_a_checkpoint() -> None:
    with memory() as files:
        with pytest.raises(SourceError, match="memory://bucket/none is empty or does not exist; name the folder"):
            open_source("memory://bucket/none")
        files.pipe_file("/bucket/old/config.json", b"{}")
        files.pipe_file("/bucket/old/pytorch_model.bin", b"pickle")
        with pytest.raises(SourceError, match="only as pickle"):
            open_source("memory://bucket/old")


def test_a_place_that_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(MemoryFileSystem, "find", refused)
    with pytest.raises(SourceError, match="cannot read memory://bucket/tiny: PermissionError: Forbidden"):
        open_source("memory://bucket/tiny")
