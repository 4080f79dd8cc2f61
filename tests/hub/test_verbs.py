"""Publishing, against a real HTTP server that speaks enough of the Hub."""

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

from tests.helpers.hub_server import TOKEN, HubServer, hub_environment
from tests.helpers.tiny import save_tiny, tiny_config

IDS = torch.arange(3, 12)[None]


def run(server: HubServer, home: Path, *arguments: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **hub_environment(server, home, token=token)},
        capture_output=True,
        text=True,
        check=False,
    )


LOAD = """
import json, sys, torch
sys.modules["optimum_ishrink"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
from huggingface_hub import ModelCard
model = AutoModelForCausalLM.from_pretrained("me/small", dtype=torch.float32)
AutoTokenizer.from_pretrained("me/small")
print(json.dumps({"logits": model(torch.arange(3, 12)[None]).logits.flatten().tolist(),
                  "tags": ModelCard.load("me/small").data.tags}))
"""

CONFIG = """
from optimum_ishrink import IShrinkConfig
print(IShrinkConfig.from_pretrained("me/small").num_hidden_layers)
"""


def test_shrink_push_and_load_from_the_hub(llama_folder: Path, tmp_path: Path) -> None:
    with HubServer() as server:
        target = tmp_path / "small"
        flags = ["--importance", "l2-norm", "--layer-importance", "l2-norm", "--no-evaluate", "--no-benchmark"]
        flags += ["--compensation", "none"]
        shape = ["--num-hidden-layers", "3", "--intermediate-size", "16", "--json"]
        done = run(
            server,
            tmp_path / "home",
            *("-m", "optimum_ishrink", "shrink", "--model", str(llama_folder), "--output", str(target)),
            *(*shape, *flags, "--push-to-hub", "me/small", "--private"),
        )
        assert done.returncode == 0, done.stderr
        repo = server.repos["me/small"]
        assert repo.private
        (commit,) = repo.commits
        assert json.loads(done.stdout)["commit_url"].endswith(commit.oid)
        expected = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
        # The Hub's card loads the model by its name there; the folder's still loads the folder.
        assert expected["README.md"].count(b'from_pretrained("small"') == 2
        for local, named in (
            (b'from_pretrained("small"', b'from_pretrained("me/small"'),
            (b"vllm serve small\n", b"vllm serve me/small\n"),
            (b"export --model small ", b"export --model me/small "),
        ):
            assert local in expected["README.md"]
            expected["README.md"] = expected["README.md"].replace(local, named)
        assert {name: data for name, data in commit.files.items() if name != ".gitattributes"} == expected
        assert not any(TOKEN.encode() in data for data in commit.files.values())
        assert TOKEN not in done.stdout + done.stderr

        loaded = run(server, tmp_path / "fresh", "-c", LOAD)
        assert loaded.returncode == 0, loaded.stderr[-2000:]
        found = json.loads(loaded.stdout)
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        assert found["logits"] == model(IDS).logits.flatten().tolist()
        assert "optimum-ishrink" in found["tags"]
        config = run(server, tmp_path / "fresh", "-c", CONFIG)
        assert config.stdout.strip() == "3", config.stderr


@pytest.mark.parametrize(("first", "second"), [("5GB", "20KB"), ("20KB", "5GB")])
def test_a_second_push_leaves_no_weights_of_the_first(tmp_path: Path, first: str, second: str) -> None:
    old = save_tiny(tmp_path / "old", tiny_config("llama"), max_shard_size=first)
    new = save_tiny(tmp_path / "new", tiny_config("llama"), seed=1, max_shard_size=second)
    (old / "notes.txt").write_text("stays")
    with HubServer() as server:
        for folder in (old, new):
            push = ("-m", "optimum_ishrink", "push", "--model", str(folder), "--repo-id", "me/small")
            done = run(server, tmp_path / "home", *push)
            assert done.returncode == 0, done.stderr
        one, two = server.repos["me/small"].commits

    def weights(files: Iterable[str]) -> set[str]:
        return {name for name in files if "safetensors" in name}

    assert weights(one.files) == weights(path.name for path in old.iterdir())
    assert weights(two.files) == weights(path.name for path in new.iterdir())
    assert all(two.files[name] == (new / name).read_bytes() for name in weights(two.files))
    assert "notes.txt" in two.files


@pytest.mark.parametrize(("token", "said"), [("hf_readonly", "may only read"), (None, "not logged in")])
def test_shrink_asks_before_the_work_whether_it_may_push(
    llama_folder: Path, tmp_path: Path, token: str | None, said: str
) -> None:
    with HubServer(read_only_tokens={"hf_readonly"}) as server:
        shrink = ("-m", "optimum_ishrink", "shrink", "--model", str(llama_folder), "--output", str(tmp_path / "small"))
        done = run(server, tmp_path / "home", *shrink, "--target", "params=-15%", "--push-to-hub", "me/s", token=token)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1 and said in done.stderr and "hf auth login" in done.stderr, done.stderr
        assert "Nothing was begun" in done.stderr and not (tmp_path / "small").exists()
        assert server.repos == {}
