"""From a shrink to a model that loads from the Hub, against a real HTTP server with the endpoints needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_ishrink.cli.program import main
from tests.helpers.hub_server import HubServer, hub_environment
from tests.helpers.push_folder import SECRET
from tests.helpers.tiny import save_tiny, tiny_config

IDS = torch.arange(3, 12)[None]

LOAD = """
import json, sys, torch
sys.modules["optimum_ishrink"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
from huggingface_hub import ModelCard
model = AutoModelForCausalLM.from_pretrained("me/small", dtype=torch.float32)
AutoTokenizer.from_pretrained("me/small")
del sys.modules["optimum_ishrink"]
from optimum_ishrink import IShrinkConfig
print(json.dumps({"logits": model(torch.arange(3, 12)[None]).logits.flatten().tolist(),
                  "tags": ModelCard.load("me/small").data.tags,
                  "layers": IShrinkConfig.from_pretrained("me/small").num_hidden_layers}))
"""


def test_shrink_push_and_load_from_the_hub(
    server: HubServer, llama_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small"
    flags = ["--importance", "l2-norm", "--layer-importance", "l2-norm", "--no-evaluate", "--no-benchmark"]
    flags += ["--compensation", "none"]
    shape = ["--num-hidden-layers", "3", "--intermediate-size", "16", "--json"]
    shrink = ["shrink", "--model", str(llama_folder), "--output", str(target), *shape, *flags]
    assert main([*shrink, "--push-to-hub", "me/small", "--private"]) == 0
    out, error = capfd.readouterr()
    repo = server.repos["me/small"]
    assert repo.private
    (commit,) = repo.commits
    assert json.loads(out)["commit_url"].endswith(commit.oid)
    expected = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    # The Hub's card loads the model by its repository; the folder's card still loads the folder.
    assert expected["README.md"].count(b'from_pretrained("small"') == 2
    for local, named in (
        (b'from_pretrained("small"', b'from_pretrained("me/small"'),
        (b"vllm serve small\n", b"vllm serve me/small\n"),
        (b"export --model small ", b"export --model me/small "),
    ):
        assert local in expected["README.md"]
        expected["README.md"] = expected["README.md"].replace(local, named)
    assert {name: data for name, data in commit.files.items() if name != ".gitattributes"} == expected
    assert not any(SECRET.encode() in data for data in commit.files.values())
    assert SECRET not in out + error

    # Another machine: a fresh process with an empty cache.
    environment = {**os.environ, **hub_environment(server, tmp_path / "fresh", token=SECRET)}
    loaded = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr[-2000:]
    found = json.loads(loaded.stdout)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    assert found["logits"] == model(IDS).logits.flatten().tolist()
    assert "optimum-ishrink" in found["tags"]
    assert found["layers"] == 3


@pytest.mark.parametrize(("first", "second"), [("5GB", "20KB"), ("20KB", "5GB")])
def test_a_second_push_removes_the_weights_of_the_first(
    server: HubServer, tmp_path: Path, first: str, second: str
) -> None:
    old = save_tiny(tmp_path / "old", tiny_config("llama"), max_shard_size=first)
    new = save_tiny(tmp_path / "new", tiny_config("llama"), seed=1, max_shard_size=second)
    (old / "notes.txt").write_text("not a weight")
    for folder in (old, new):
        assert main(["push", "--model", str(folder), "--repo-id", "me/small"]) == 0
    one, two = server.repos["me/small"].commits

    def weights(files: Iterable[str]) -> set[str]:
        return {name for name in files if "safetensors" in name}

    assert weights(one.files) == weights(path.name for path in old.iterdir())
    assert weights(two.files) == weights(path.name for path in new.iterdir())
    assert all(two.files[name] == (new / name).read_bytes() for name in weights(two.files))
    assert "notes.txt" in two.files


@pytest.mark.parametrize(("token", "message"), [("hf_readonly", "can only read"), ("", "not logged in")])
def test_shrink_checks_the_destination_before_the_work(
    server: HubServer,
    llama_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str,
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    shrink = ["shrink", "--model", str(llama_folder), "--output", str(tmp_path / "small"), "--target", "params=-15%"]
    assert main([*shrink, "--push-to-hub", "me/s"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error and "hf auth login" in error, error
    assert "Nothing was started" in error and not (tmp_path / "small").exists()
    assert server.repos == {}
