"""Publishing while files or the repository change."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from optimum_ishrink.errors import PublishError
from optimum_ishrink.hub.push import push_folder
from optimum_ishrink.hub.snapshot import read_folder
from tests.helpers.hub_server import HubServer, Request
from tests.helpers.push_folder import named


@pytest.mark.parametrize("change", ["small", "large", "new", "removed", "same size and time"])
def test_a_file_that_changes_during_the_upload_stops_the_push(server: HubServer, folder: Path, change: str) -> None:
    name = {"small": "config.json", "large": "model-1.safetensors", "new": "new.txt"}.get(change, "README.md")
    path = folder / name

    def act(request: Request) -> None:
        if request.method != "PUT" or (change != "removed" and path.exists() and path.read_bytes()[:3] == b"new"):
            return
        if change == "removed":
            path.unlink(missing_ok=True)
        elif change == "same size and time":
            status, other = path.stat(), folder.parent / "other"
            other.write_bytes(b"new" + path.read_bytes()[3:])
            os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
            other.replace(path)
        else:
            path.write_bytes(b"new" * 1000)

    server.on_request = act
    with pytest.raises(PublishError, match=f"{re.escape(name)} in .* changed during the upload, so nothing was comm"):
        push_folder(folder, "me/small")
    assert server.repos["me/small"].commits == []


def test_a_commit_of_someone_else_stops_the_push(server: HubServer, folder: Path) -> None:
    push_folder(folder, "me/small")
    (folder / "config.json").write_text('{"model_type": "mistral"}')

    def intrude(request: Request) -> None:
        if "/preupload/" in request.path:
            repo = server.repos["me/small"]
            repo.commits.append(type(repo.head)("f" * 40, "Other", dict(repo.head.files), repo.head.lfs_paths))
            server.on_request = lambda request: None

    server.on_request = intrude
    with pytest.raises(PublishError, match="someone else committed to me/small in the meantime"):
        push_folder(folder, "me/small")
    assert server.repos["me/small"].head.message == "Other"
    push_folder(folder, "me/small")
    assert server.repos["me/small"].head.files == named(folder)


def test_what_a_killed_run_left_half_written_is_not_published(folder: Path) -> None:
    whole = set(read_folder(folder))
    (folder / ".README.md.99.partial").write_text("half")
    (folder / "figures" / ".speed.png.99.partial").write_text("half")
    (folder / ".out.abcdefgh.partial").mkdir()
    (folder / ".out.abcdefgh.partial" / "model.safetensors").write_text("half")
    (folder / "mine.partial").write_text("whole, and named by its owner")
    assert set(read_folder(folder)) == {*whole, "mine.partial"}
