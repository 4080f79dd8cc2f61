"""The test Hub, proved with the real clients.

The clients run in child processes, because `huggingface_hub` reads `HF_ENDPOINT` when it is imported.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.hub_server import TOKEN, HubServer, hub_environment
from tests.helpers.tiny import save_tiny, tiny_config

CARD = "---\nlicense: apache-2.0\nlibrary_name: transformers\ntags: [pruned]\n---\n\n# A tiny model\n"

LOAD_MODEL = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("me/x")
assert tokenizer("abc")["input_ids"]
model, report = AutoModelForCausalLM.from_pretrained("me/x", output_loading_info=True)
assert not any(report.values()), report
with torch.no_grad():
    logits = model.eval()(torch.arange(3, 11)[None]).logits
assert torch.equal(logits, torch.load(sys.argv[1]))
"""

PUBLISH = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("me/x", private=True)
info = api.upload_folder(repo_id="me/x", folder_path=sys.argv[1], commit_message="Publish")
print(info.oid)
"""

# A small folder with a regular and an LFS file, for the tests that need no model.
SMALL_FILES = {"README.md": CARD.encode(), "weights.bin": bytes(range(256)), "sub/notes.txt": b"notes"}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(read_only_tokens={"hf_readonly"}) as server:
        yield server


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    for name, content in SMALL_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def run(hub: HubServer, home: Path, script: str, *args: Any, token: str | None = TOKEN) -> str:
    """Run a script in a child process that uses the server; return what it printed."""
    env = {**os.environ, **hub_environment(hub, home, token=token)}
    command = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commits_asked(hub: HubServer) -> int:
    return sum(request.method == "POST" and "/commit/" in request.path for request in hub.requests)


# tests/hub/test_published_checkpoint.py loads one as well, after a shrink.
@pytest.mark.slow
def test_a_published_model_loads_in_a_fresh_process(hub: HubServer, tmp_path: Path) -> None:
    folder, logits = save_tiny(tmp_path / "model", tiny_config("llama")), tmp_path / "logits.pt"
    with torch.no_grad():
        torch.save(AutoModelForCausalLM.from_pretrained(folder)(torch.arange(3, 11)[None]).logits, logits)
    (folder / "README.md").write_text(CARD)

    oid = run(hub, tmp_path / "home1", PUBLISH, folder)

    repo = hub.repos["me/x"]
    assert repo.private
    assert [(commit.oid, commit.message) for commit in repo.commits] == [(oid, "Publish")]
    assert commits_asked(hub) == 1
    assert repo.head.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert repo.head.lfs_paths == {"model.safetensors"}
    # The token is sent to the Hub but not to the storage, whose URL grants access.
    puts = [request for request in hub.requests if request.method == "PUT"]
    assert [request.headers.get("authorization") for request in puts] == [None]
    assert all(TOKEN not in request.path for request in hub.requests)

    run(hub, tmp_path / "home2", LOAD_MODEL, logits)


def test_card_snapshot_and_single_file(hub: HubServer, small_folder: Path, tmp_path: Path) -> None:
    oid = run(hub, tmp_path / "home1", PUBLISH, small_folder)
    script = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
card = ModelCard.load("me/x")
assert (card.data.license, card.data.tags) == ("apache-2.0", ["pruned"])
root = Path(snapshot_download("me/x", revision=sys.argv[1]))
print(json.dumps({p.relative_to(root).as_posix(): p.read_bytes().hex() for p in root.rglob("*") if p.is_file()}))
assert Path(hf_hub_download("me/x", "sub/notes.txt")).read_text() == "notes"
api = HfApi()
assert api.whoami()["name"] == "me"
assert {item.path for item in api.list_repo_tree("me/x")} == {"README.md", "weights.bin", "sub"}
def raises(kind, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except kind:
        return
    raise AssertionError(kind)
raises(EntryNotFoundError, hf_hub_download, "me/x", "missing.txt")
raises(RevisionNotFoundError, hf_hub_download, "me/x", "README.md", revision="v9")
raises(RepositoryNotFoundError, api.model_info, "me/missing")
raises(RepositoryNotFoundError, api.model_info, "me/x", token=False)  # private, and not logged in
"""
    found = json.loads(run(hub, tmp_path / "home2", script, oid))
    assert found == {name: content.hex() for name, content in SMALL_FILES.items()}


def test_unchanged_files_make_no_commit_and_deletions_work(hub: HubServer, small_folder: Path, tmp_path: Path) -> None:
    run(hub, tmp_path / "home", PUBLISH, small_folder)
    script = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("me/x", exist_ok=True)
try:
    api.create_repo("me/x")
except Exception as error:
    assert error.response.status_code == 409, error
else:
    raise AssertionError
api.upload_folder(repo_id="me/x", folder_path=sys.argv[1], commit_message="Nothing new")
api.upload_folder(repo_id="me/x", folder_path=sys.argv[1], delete_patterns="sub/*", ignore_patterns="sub/*",
                  commit_message="Tidy")
api.create_repo("me/d", repo_type="dataset")
api.upload_file(repo_id="me/d", repo_type="dataset", path_or_fileobj=b"{}", path_in_repo="a.json")
assert open(api.hf_hub_download("me/d", "a.json", repo_type="dataset")).read() == "{}"
"""
    run(hub, tmp_path / "home", script, small_folder)
    assert [commit.message for commit in hub.repos["me/x"].commits] == ["Publish", "Tidy"]
    assert set(hub.repos["me/x"].head.files) == {"README.md", "weights.bin"}
    assert hub.repos["datasets/me/d"].head.files == {"a.json": b"{}"}
    assert sum(request.method == "PUT" for request in hub.requests) == 1


def test_injected_failures(hub: HubServer, small_folder: Path, tmp_path: Path) -> None:
    script = """
import sys
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
api = HfApi()
api.create_repo("me/x")
try:
    api.upload_folder(repo_id="me/x", folder_path=sys.argv[1])
except HfHubHTTPError as error:
    assert error.response.status_code == 500, error
else:
    raise AssertionError("the failure was not seen")
try:
    api.upload_folder(repo_id="me/x", folder_path=sys.argv[1])
except Exception as error:
    print(type(error).__name__)
else:
    raise AssertionError("the lost answer was not seen")
"""
    hub.fail_next("POST", r"/commit/main", status=500)
    hub.drop_next("POST", r"/commit/main", applied=True)
    hub.fail_next("PUT", r"/lfs-storage/", status=503)  # retried by the client
    assert run(hub, tmp_path / "home", script, small_folder) == "RemoteProtocolError"
    assert commits_asked(hub) == 2
    assert len(hub.repos["me/x"].commits) == 1  # the commit whose response was lost
    assert sum(request.method == "PUT" for request in hub.requests) == 2


@pytest.mark.parametrize(("token", "status"), [("hf_readonly", 403), (None, 401)])
def test_writes_need_a_token_that_may_write(
    hub: HubServer, small_folder: Path, tmp_path: Path, token: str | None, status: int
) -> None:
    run(hub, tmp_path / "home1", PUBLISH, small_folder)
    script = """
import sys
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
api = HfApi()
for call, args in [(api.create_repo, {"repo_id": "me/y"}),
                   (api.upload_folder, {"repo_id": "me/x", "folder_path": sys.argv[1]})]:
    try:
        call(**args)
    except HfHubHTTPError as error:
        assert error.response.status_code == int(sys.argv[2]), error
    else:
        raise AssertionError(call)
"""
    (small_folder / "new.txt").write_text("new")
    run(hub, tmp_path / "home2", script, small_folder, status, token=token)
    assert len(hub.repos["me/x"].commits) == 1
    assert "me/y" not in hub.repos


def fetch(url: str, method: str = "GET", headers: dict[str, str] | None = None, data: bytes | None = None) -> Any:
    """Ask the server directly, past any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    headers = {"Authorization": f"Bearer {TOKEN}", **(headers or {})}
    return opener.open(urllib.request.Request(url, data=data, method=method, headers=headers), timeout=10)


def test_ranges_storage_checks_and_dropped_connections(hub: HubServer, small_folder: Path, tmp_path: Path) -> None:
    run(hub, tmp_path / "home", PUBLISH, small_folder)
    url = f"{hub.endpoint}/me/x/resolve/main/weights.bin"
    for asked, expected in [("4-7", range(4, 8)), ("250-", range(250, 256)), ("-2", range(254, 256))]:
        answer = fetch(url, headers={"Range": f"bytes={asked}"})
        assert (answer.status, answer.read()) == (206, bytes(expected))
    with pytest.raises(urllib.error.HTTPError, match="416"):
        fetch(url, headers={"Range": "bytes=256-"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        fetch(f"{hub.endpoint}/lfs-storage/{'0' * 64}", method="PUT", data=b"not granted")
    question = json.dumps({"objects": [{"oid": "0" * 64, "size": 3}]}).encode()
    batch = json.load(fetch(f"{hub.endpoint}/me/x.git/info/lfs/objects/batch", method="POST", data=question))
    with pytest.raises(urllib.error.HTTPError, match="400"):
        fetch(batch["objects"][0]["actions"]["upload"]["href"], method="PUT", data=b"bad")
    assert "0" * 64 not in hub.lfs_objects
    hub.drop_next("HEAD", r"weights\.bin$")
    with pytest.raises(ConnectionError):
        fetch(url, method="HEAD")
    assert fetch(url, method="HEAD").headers["Content-Length"] == "256"
