"""`plan --shape-only`: it reads no weights, and accepts no shape that `shrink` refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from optimum_ishrink.checkpoint.source import open_config
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import SourceError
from tests.helpers.hub_endpoints import Commit, Repo
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny import edit_json, save_tiny, tiny_config

SHAPE = ["--num-hidden-layers", "3", "--keep-first-layers", "0", "--keep-last-layers", "0", "--shape-only", "--json"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def publish(hub: HubServer, name: str, folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    large = frozenset(path for path in files if path.endswith(".safetensors"))
    hub.repos[name] = Repo(commits=[Commit("1" * 40, "all", files, large)])


def fetched(hub: HubServer) -> set[str]:
    return {request.path.rpartition("/")[2] for request in hub.requests if "/resolve/" in request.path}


@pytest.mark.parametrize(("model_type", "variant"), [("llama", 0), ("llama", 1), ("qwen3_moe", 0), ("gemma", 0)])
def test_of_a_hub_model_the_config_alone_is_fetched(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], model_type: str, variant: int
) -> None:
    folder = save_tiny(tmp_path / "m", tiny_config(model_type, variant))
    publish(hub, "org/model", folder)
    assert main(["plan", "--model", str(folder), *SHAPE]) == 0
    local = json.loads(capsys.readouterr().out)
    assert main(["plan", "--model", "org/model", *SHAPE]) == 0
    assert json.loads(capsys.readouterr().out) == local
    assert fetched(hub) == {"config.json"}


def test_a_hub_model_that_cannot_be_cut_has_no_plan(
    hub: HubServer, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    publish(hub, "org/pickled", folder)
    (folder / "pytorch_model.bin").rename(weights)
    (folder / "adapter_config.json").write_text("{}")
    publish(hub, "org/adapted", folder)
    (folder / "config.json").unlink()
    publish(hub, "org/bare", folder)
    for name, message in (
        ("org/pickled", "holds its weights only as pickle"),
        ("org/adapted", "holds adapter_config.json: from_pretrained loads that adapter on top of the weights"),
        ("org/bare", "org/bare holds no config.json; name a repository of a transformers model"),
        ("org/nothing", "neither a local folder nor a Hub repository that you can read"),
    ):
        assert main(["plan", "--model", name, *SHAPE]) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and message in error[0]
    assert fetched(hub) <= {"config.json"}


def test_a_folder_whose_headers_do_not_fit_has_no_plan(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert main(["plan", "--model", str(folder), *SHAPE]) == 2
    assert "lacks 1 tensors that its config expects" in capsys.readouterr().err


def test_no_weights_are_read_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored second head is compared with the embedding only where weights are read."""
    folder = save_tiny(tmp_path / "m", tiny_config("gemma"))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", tie_word_embeddings=None)
    monkeypatch.setattr("optimum_ishrink.checkpoint.tensors.read_tensor", lambda *_: pytest.fail("weights were read"))
    assert main(["plan", "--model", str(folder), *SHAPE]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_parameters"] == sum(t.numel() for name, t in tensors.items() if name != "lm_head.weight")


def test_a_path_is_no_hub_id() -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_config("./nowhere")
