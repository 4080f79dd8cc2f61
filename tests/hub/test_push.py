"""Publishing a folder: one commit, with the folder's own files, private or public."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import PublishError, RequestError, SourceError
from optimum_ishrink.hub.push import push_folder
from optimum_ishrink.report.report import ModelReport, Report
from optimum_ishrink.report.run import Run
from tests.helpers.hub_server import HubServer, Request
from tests.helpers.push_folder import CARD, SECRET, hashes, named
from tests.helpers.records import make_environment


def test_one_commit_holds_the_folder_and_the_folder_is_unchanged(server: HubServer, folder: Path) -> None:
    before = hashes(folder)
    url = push_folder(folder, "me/small")
    (commit,) = server.repos["me/small"].commits
    assert url == f"{server.endpoint}/me/small/commit/{commit.oid}"
    assert commit.files == named(folder)
    assert commit.message == "Upload small, shrunk with optimum-ishrink"
    assert hashes(folder) == before
    assert not server.repos["me/small"].private


def test_an_unchanged_folder_makes_no_commit(server: HubServer, folder: Path, capsys: pytest.CaptureFixture) -> None:
    first = push_folder(folder, "me/small")
    capsys.readouterr()
    assert push_folder(folder, "me/small", commit_message="Again") == first
    assert capsys.readouterr().err == "me/small already holds these files; nothing was committed\n"
    assert len(server.repos["me/small"].commits) == 1
    (folder / "model-2.safetensors").unlink()
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    push_folder(folder, "me/small", commit_message="Fewer")
    assert [commit.message for commit in server.repos["me/small"].commits][1:] == ["Fewer"]
    assert set(server.repos["me/small"].head.files) == set(hashes(folder)) - {".git/HEAD"}


def test_results_are_removed_with_their_weights(server: HubServer, folder: Path) -> None:
    results = folder / ".eval_results" / "gsm8k.yaml"
    results.parent.mkdir()
    results.write_text("- value: 1\n")
    push_folder(folder, "me/small")
    assert ".eval_results/gsm8k.yaml" in server.repos["me/small"].head.files
    results.unlink()
    (folder / "README.md").write_text(CARD + "\nMore words.\n")
    push_folder(folder, "me/small")
    assert ".eval_results/gsm8k.yaml" in server.repos["me/small"].head.files  # the weights are the same
    (folder / "model-1.safetensors").write_bytes(bytes(300_000))
    push_folder(folder, "me/small")
    assert ".eval_results/gsm8k.yaml" not in server.repos["me/small"].head.files


def test_private_and_private_until_complete(server: HubServer, folder: Path, capsys: pytest.CaptureFixture) -> None:
    push_folder(folder, "me/new", private=True)
    assert server.repos["me/new"].private

    seen: list[tuple[str, bool]] = []

    def watch(request: Request) -> None:
        kind = re.search(r"lfs-storage|/commit/|/tree/|/settings", request.path)
        if kind and "me/later" in server.repos:
            seen.append((kind[0].strip("/"), server.repos["me/later"].private))

    server.on_request = watch
    (folder / "model-1.safetensors").write_bytes(b"other weights")
    push_folder(folder, "me/later", private_until_complete=True)
    assert not server.repos["me/later"].private
    order = [kind for kind, _ in seen]
    assert order[-3:] == ["commit", "tree", "settings"] and "lfs-storage" in order
    assert all(private for _, private in seen)
    server.on_request = lambda request: None

    # A public repository is not hidden temporarily; `private` makes it private.
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    capsys.readouterr()
    push_folder(folder, "me/later", private_until_complete=True)
    assert "me/later is already public and remains public" in capsys.readouterr().err
    server.on_request = lambda request: seen.append(("commit", server.repos["me/later"].private))
    seen.clear()
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    server.on_request = lambda request: (
        seen.append(("commit", server.repos["me/later"].private)) if "/commit/" in request.path else None
    )
    push_folder(folder, "me/later", private=True)
    assert seen == [("commit", True)]
    assert server.repos["me/later"].private

    with pytest.raises(RequestError, match="exclude each other"):
        push_folder(folder, "me/later", private=True, private_until_complete=True)
    with pytest.raises(SystemExit, match="2"):
        main(["push", "--model", "x", "--repo-id", "me/x", "--private", "--private-until-complete"])


def test_a_new_repository_is_private_until_the_upload_is_complete(server: HubServer, folder: Path) -> None:
    server.fail_next("POST", "/commit/", status=500, times=100)
    with pytest.raises(
        PublishError, match="is complete, and the repository is still private; try again with: .*-until-comp"
    ):
        push_folder(folder, "me/small", private_until_complete=True)
    assert server.repos["me/small"].private
    server._faults.clear()
    push_folder(folder, "me/small", private_until_complete=True)
    assert not server.repos["me/small"].private


@pytest.mark.parametrize("changed", ["config.json", "notes.md"])
def test_a_private_repository_with_other_files_is_not_made_public(
    changed: str, server: HubServer, folder: Path
) -> None:
    kept = folder / changed
    before = kept.read_bytes() if kept.exists() else None
    kept.write_text('{"model_type": "qwen2"}')
    push_folder(folder, "me/mine", private=True)
    if before is None:
        kept.unlink()
    else:
        kept.write_bytes(before)
    with pytest.raises(RequestError, match="me/mine exists, is private, and holds .*; --private-until-complete makes"):
        push_folder(folder, "me/mine", private_until_complete=True)
    assert server.repos["me/mine"].private


def test_an_upload_whose_end_was_lost_is_made_public(server: HubServer, folder: Path) -> None:
    push_folder(folder, "me/small", private=True)
    push_folder(folder, "me/small", private_until_complete=True)
    assert not server.repos["me/small"].private


def test_the_hubs_copy_is_read_back(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = HubServer._make_commit

    def lose_a_file(self: HubServer, *arguments: object) -> object:
        answer = make(self, *arguments)  # type: ignore[arg-type]
        del self.repos["me/small"].head.files["config.json"]
        return answer

    monkeypatch.setattr(HubServer, "_make_commit", lose_a_file)
    with pytest.raises(PublishError, match=r"config\.json on me/small is not what was sent"):
        push_folder(folder, "me/small", private_until_complete=True)
    assert server.repos["me/small"].private


def test_a_branch_that_does_not_exist(server: HubServer, folder: Path) -> None:
    with pytest.raises(PublishError, match="create it with `hf repos branch create me/small v1`") as caught:
        push_folder(folder, "me/small", revision="v1", private=True)
    retry = f"ishrink push --model {folder} --repo-id me/small --private --revision v1"
    assert str(caught.value).endswith(f"try again with: {retry}")


@pytest.mark.parametrize("name", ["README.md", "config.json", "ishrink_plan.json", "figures/notes.txt"])
def test_a_file_that_holds_the_token_is_not_sent(server: HubServer, folder: Path, name: str) -> None:
    (folder / name).write_text(f"--token {SECRET}")
    with pytest.raises(RequestError, match=f"{re.escape(name)} contains your Hub token; remove it") as caught:
        push_folder(folder, "me/small")
    assert SECRET not in str(caught.value)
    assert server.requests == []


def test_a_card_that_the_hub_refuses_is_refused_before_anything_is_sent(server: HubServer, folder: Path) -> None:
    server.fail_next("POST", "/validate-yaml", status=400, message="license must be a string")
    with pytest.raises(PublishError, match="license must be a string"):
        push_folder(folder, "me/small")
    assert server.repos == {}


def test_the_command_line_pushes_and_says_where(
    server: HubServer, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--repo-id", "small", "--commit-message", "First", "--private-until-complete", "--json"]
    assert main(["push", "--model", str(folder), *flags]) == 0
    (commit,) = server.repos["me/small"].commits
    assert commit.message == "First"
    assert json.loads(capsys.readouterr().out)["commit_url"] == f"{server.endpoint}/me/small/commit/{commit.oid}"


def test_a_card_that_was_written_under_another_name(server: HubServer, folder: Path) -> None:
    moved = folder.rename(folder.parent / "moved")
    Run(None, Report(None, ModelReport("small", 1, 2), make_environment())).write(moved)
    push_folder(moved, "me/small")
    assert b'from_pretrained("me/small"' in server.repos["me/small"].head.files["README.md"]


def test_a_damaged_report_is_not_pushed(server: HubServer, folder: Path) -> None:
    (folder / "ishrink_report.json").write_text('{"schema": 2}')
    with pytest.raises(SourceError, match="ishrink_report.json: this report lacks base, environment, shrunk"):
        push_folder(folder, "me/small")
    assert not server.repos


def test_a_folder_that_is_no_checkpoint_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a checkpoint folder"):
        push_folder(tmp_path, "me/x")
