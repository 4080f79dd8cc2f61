from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import edit_json, save_tiny, tiny_config, tiny_model, tiny_tokenizer

from optimum_ishrink.errors import ArchitectureError, SourceError
from optimum_ishrink.source import load_model, load_tokenizer, open_source


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama_folder, tmp_path / "model")


def test_one_file_and_shards_give_the_same_tensors(tmp_path: Path) -> None:
    config = tiny_config("qwen2")
    one = open_source(save_tiny(tmp_path / "one", config))
    many = open_source(save_tiny(tmp_path / "many", config, max_shard_size="20KB"))
    assert len({info.file for info in many.tensors.values()}) > 3
    assert {n: (i.shape, i.dtype) for n, i in one.tensors.items()} == {
        n: (i.shape, i.dtype) for n, i in many.tensors.items()
    }
    assert one.nbytes == many.nbytes == one.binding.num_parameters() * 4


def test_a_model_in_memory() -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    source = open_source(model, tokenizer=tokenizer)
    assert source.notes == ("saved from a model in memory",)
    again = source.load_model(torch.float32, torch.device("cpu"))
    ids = torch.arange(3, 9)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert source.load_tokenizer()("abc")["input_ids"] == tokenizer("abc")["input_ids"]
    place = source.folder
    del source
    assert not place.exists()
    with pytest.raises(SourceError, match="needs its tokenizer"):
        open_source(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "does not exist"),
        ("a/b/c", "does not exist"),
        ("nobody/nothing", "not a local folder, not in the cache, and the Hub cannot be reached"),
        ("no spaces allowed", "nor a valid Hub id"),
    ],
)
def test_models_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(name)


def test_the_licence_is_read_from_the_card(folder: Path) -> None:
    assert open_source(folder).license is None
    (folder / "README.md").write_text("---\ntags: [a]\nlicense: llama3.2\n---\n# Hi\n")
    assert open_source(folder).license == "llama3.2"


def test_folders_that_are_no_model(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no config.json$"):
        open_source(tmp_path / "empty")
    (tmp_path / "empty" / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match="it holds m.gguf: pass it as gguf_file"):
        open_source(tmp_path / "empty")
    with pytest.raises(SourceError, match="give its folder as the model and pass gguf_file='m.gguf'"):
        open_source(tmp_path / "empty" / "m.gguf")
    (folder / "config.json").write_text("[]")
    with pytest.raises(SourceError, match="not a JSON object"):
        open_source(folder).binding  # noqa: B018


def test_a_gguf_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"not at all")
    with pytest.raises(SourceError, match="cannot read .*m.gguf as GGUF"):
        open_source(tmp_path, gguf_file="m.gguf")
    with pytest.raises(SourceError, match="holds no 'x.gguf'; GGUF files there: m.gguf"):
        open_source(tmp_path, gguf_file="x.gguf")


def test_files_that_do_not_fit_the_config(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="lacks 1 tensors that its config expects: model.norm.weight"):
        open_source(folder).tensors  # noqa: B018
    save_file(
        {**tensors, "model.norm.weight": norm, "odd": norm.clone()}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(SourceError, match="holds 1 tensors that its config does not expect: odd"):
        open_source(folder).tensors  # noqa: B018
    save_file({**tensors, "model.norm.weight": norm[:5].clone()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"model.norm.weight as \[5\]; its config expects \[32\]"):
        open_source(folder).tensors  # noqa: B018


def test_loading_says_what_does_not_fit(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="missing_keys model.norm.weight"):
        load_model(folder, torch.float32, torch.device("cpu"))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    tiny_model(tiny_config("llama")).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="holds no usable tokenizer"):
        load_tokenizer(tmp_path)


def test_several_submodules_are_refused(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="llava", text_config={"model_type": "llama"})
    with pytest.raises(ArchitectureError, match="unknown architecture 'llava'"):
        open_source(folder).binding  # noqa: B018


def test_the_hub_client_is_asked_for_what_is_needed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    commit = folder.rename(folder.parent / ("a1" * 20))
    asked: dict[str, object] = {}

    def download(repo_id: str, **kwargs: object) -> str:
        asked.update(kwargs, repo_id=repo_id)
        return str(commit)

    monkeypatch.setattr("optimum_ishrink.source.snapshot_download", download)
    source = open_source("org/model", revision="main", token="hf_secret")
    assert (source.name, source.revision, source.is_hub_id) == ("org/model", "a1" * 20, True)
    assert asked["token"] == "hf_secret"
    assert "hf_secret" not in repr(source)
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])  # type: ignore[attr-defined]

    response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
    for error, message in (
        (GatedRepoError, "it is gated; accept its terms"),
        (RepositoryNotFoundError, "nor a Hub repository that you can read"),
        (RevisionNotFoundError, "no revision 'main'"),
    ):

        def fail(repo_id: str, error: type = error, **kwargs: object) -> str:
            raise error("no", response=response)

        monkeypatch.setattr("optimum_ishrink.source.snapshot_download", fail)
        with pytest.raises(SourceError, match=message):
            open_source("org/model", revision="main")


def test_a_quantised_or_remote_config_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(SourceError, match="already quantised"):
        open_source(folder).binding  # noqa: B018
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {}}))
    with pytest.raises(ArchitectureError, match="remote code"):
        open_source(folder).binding  # noqa: B018
