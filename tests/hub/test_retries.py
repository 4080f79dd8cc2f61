"""Publishing when the Hub fails or the connection drops: what is retried, and what is not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from optimum_ishrink.errors import PublishError
from optimum_ishrink.hub.push import push_folder
from tests.helpers.hub_server import HubServer
from tests.helpers.push_folder import hashes, named


def puts(server: HubServer) -> list[str]:
    return [request.path.split("/")[-1] for request in server.requests if request.path.startswith("/lfs-storage/")]


FAULTS: dict[str, Callable[[HubServer], None]] = {
    "create 500": lambda hub: hub.fail_next("POST", "/repos/create", status=500),
    "create dropped after it was applied": lambda hub: hub.drop_next("POST", "/repos/create", applied=True),
    "card 502": lambda hub: hub.fail_next("POST", "/validate-yaml", status=502),
    "info 503": lambda hub: hub.fail_next("GET", "/api/models/me/small$", status=503),
    "list dropped": lambda hub: hub.drop_next("GET", "/tree/"),
    "preupload 503 nine times": lambda hub: hub.fail_next("POST", "/preupload/", status=503, times=9),
    "batch dropped": lambda hub: hub.drop_next("POST", "/objects/batch"),
    "put 500": lambda hub: hub.fail_next("PUT", "/lfs-storage/", status=500),
    "put cut in the middle": lambda hub: hub.cut_next("PUT", "/lfs-storage/", after=1000),
    "put cut nine times": lambda hub: hub.cut_next("PUT", "/lfs-storage/", after=1000, times=9),
    "commit 503 five times": lambda hub: hub.fail_next("POST", "/commit/", status=503, times=5),
    "commit 429": lambda hub: hub.fail_next("POST", "/commit/", status=429, headers={"Retry-After": "37"}),
    "commit dropped": lambda hub: hub.drop_next("POST", "/commit/"),
    "commit applied, response lost": lambda hub: hub.drop_next("POST", "/commit/", applied=True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_transient_failures_are_retried(server: HubServer, folder: Path, fault: str, waits: list[float]) -> None:
    FAULTS[fault](server)
    before = hashes(folder)
    url = push_folder(folder, "me/small")
    (commit,) = server.repos["me/small"].commits
    assert url.endswith(commit.oid) and commit.files == named(folder)
    assert hashes(folder) == before
    assert all(found.times == 0 for found in server._faults), "the fault was never met"
    if fault == "commit 503 five times":
        assert waits == [1, 2, 4, 8, 16]
    if fault == "commit 429":
        assert waits == [37]


def test_sent_files_are_not_sent_again(server: HubServer, folder: Path) -> None:
    last = hashlib.sha256((folder / "model-3.safetensors").read_bytes()).hexdigest()
    server.cut_next("PUT", last, after=100_000, times=100)
    with pytest.raises(PublishError, match="connection was lost"):
        push_folder(folder, "me/small")
    assert server.repos["me/small"].commits == []
    stored = dict(server.lfs_objects)
    assert len(stored) == 2
    assert all(puts(server).count(oid) == 1 for oid in stored)
    server._faults.clear()
    server.requests.clear()
    push_folder(folder, "me/small")
    assert puts(server) == [last]
    assert server.repos["me/small"].head.files == named(folder)


def test_retries_end(server: HubServer, folder: Path, waits: list[float], capsys: pytest.CaptureFixture) -> None:
    server.fail_next("POST", "/commit/", status=503, times=100)
    with pytest.raises(PublishError, match="the Hub answered 503: Injected failure"):
        push_folder(folder, "me/small")
    assert waits == [1, 2, 4, 8, 16, 30]
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("committing")]
    assert notes[0] == "committing: the Hub answered 503: Injected failure; retrying in 1 s"
    assert len(notes) == 6
    server._faults.clear()
    server.fail_next("POST", "/commit/", status=429, headers={"Retry-After": "3600"})
    waits.clear()
    with pytest.raises(PublishError, match="429"):
        push_folder(folder, "me/small")
    assert waits == []  # an hour exceeds the budget
    server.fail_next("POST", "/repos/create", status=429, headers={"Retry-After": "250"}, times=3)
    with pytest.raises(PublishError, match="429"):
        push_folder(folder, "me/small")
    assert waits == [250, 250]


@pytest.mark.parametrize("status", [400, 404, 413])
def test_other_failures_are_not_retried(server: HubServer, folder: Path, status: int, waits: list[float]) -> None:
    server.fail_next("POST", "/commit/", status=status)
    with pytest.raises(PublishError, match=f"the Hub answered {status}"):
        push_folder(folder, "me/small")
    assert waits == []
    assert sum("/commit/" in request.path for request in server.requests) == 1
