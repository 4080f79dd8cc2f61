"""Publishing when things go wrong: the Hub fails, the connection drops, files change, nobody is logged in."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars

from optimum_ishrink.cli.run import main
from optimum_ishrink.errors import IShrinkError, PublishError, RequestError, SourceError
from optimum_ishrink.hub.destination import check_destination
from optimum_ishrink.hub.failures import passes, reason
from optimum_ishrink.hub.push import push_folder
from tests.helpers.hub_server import TOKEN, HubServer, Request

SECRET = "hf_RecognisableFakeToken1234567890"
CARD = '---\nlicense: mit\n---\n\n# A model\n\n    AutoModelForCausalLM.from_pretrained("small", dtype="auto")\n'


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited for; none of them passes."""
    seconds: list[float] = []
    monkeypatch.setattr("optimum_ishrink.hub.retries.sleep", seconds.append)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    return seconds


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[HubServer]:
    with HubServer(read_only_tokens={"hf_readonly"}, unknown_tokens={"hf_unknown"}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", SECRET)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        disable_progress_bars()  # what is on standard error is ours alone
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    (path / "figures").mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "README.md").write_text(CARD)
    (path / "figures" / "speed.png").write_bytes(bytes(range(256)))
    for number in (1, 2, 3):
        (path / f"model-{number}.safetensors").write_bytes(bytes([number]) * 300_000)
    return path


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def named(folder: Path) -> dict[str, bytes]:
    """What the Hub shall hold of a folder: its files, with the card naming the repository."""
    files = {name: (folder / name).read_bytes() for name in hashes(folder)}
    return {**files, "README.md": files["README.md"].replace(b'"small"', b'"me/small"')}


def puts(server: HubServer) -> list[str]:
    return [request.path.split("/")[-1] for request in server.requests if request.path.startswith("/lfs-storage/")]


def test_one_commit_holds_the_folder_and_the_folder_stays_as_it_is(server: HubServer, folder: Path) -> None:
    before = hashes(folder)
    url = push_folder(folder, "me/small")
    (commit,) = server.repos["me/small"].commits
    assert url == f"{server.endpoint}/me/small/commit/{commit.oid}"
    assert commit.files == named(folder)
    assert commit.message == "Upload small, shrunk with optimum-ishrink"
    assert hashes(folder) == before
    assert not server.repos["me/small"].private


def test_nothing_new_makes_no_commit(server: HubServer, folder: Path, capsys: pytest.CaptureFixture) -> None:
    first = push_folder(folder, "me/small")
    capsys.readouterr()
    assert push_folder(folder, "me/small", commit_message="Again") == first
    assert capsys.readouterr().err == "me/small holds these files already; nothing was committed\n"
    assert len(server.repos["me/small"].commits) == 1
    (folder / "model-2.safetensors").unlink()
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    push_folder(folder, "me/small", commit_message="Fewer")
    assert [commit.message for commit in server.repos["me/small"].commits][1:] == ["Fewer"]
    assert set(server.repos["me/small"].head.files) == set(hashes(folder)) - {".git/HEAD"}


def test_results_of_other_weights_go_with_them(server: HubServer, folder: Path) -> None:
    results = folder / ".eval_results" / "gsm8k.yaml"
    results.parent.mkdir()
    results.write_text("- value: 1\n")
    push_folder(folder, "me/small")
    assert ".eval_results/gsm8k.yaml" in server.repos["me/small"].head.files
    results.unlink()
    (folder / "README.md").write_text(CARD + "\nMore words.\n")
    push_folder(folder, "me/small")
    assert ".eval_results/gsm8k.yaml" in server.repos["me/small"].head.files  # the weights are still those
    (folder / "model-1.safetensors").write_bytes(bytes(300_000))
    push_folder(folder, "me/small")
    assert ".eval_results/gsm8k.yaml" not in server.repos["me/small"].head.files


FAULTS: dict[str, Callable[[HubServer], None]] = {
    "create 500": lambda hub: hub.fail_next("POST", "/repos/create", status=500),
    "create dropped after it was made": lambda hub: hub.drop_next("POST", "/repos/create", applied=True),
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
    "commit done, answer lost": lambda hub: hub.drop_next("POST", "/commit/", applied=True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_tried_again(server: HubServer, folder: Path, fault: str, waits: list[float]) -> None:
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


def test_what_was_sent_is_not_sent_again(server: HubServer, folder: Path) -> None:
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


def test_trying_again_ends(server: HubServer, folder: Path, waits: list[float], capsys: pytest.CaptureFixture) -> None:
    server.fail_next("POST", "/commit/", status=503, times=100)
    with pytest.raises(PublishError, match="the Hub answered 503: Injected failure"):
        push_folder(folder, "me/small")
    assert waits == [1, 2, 4, 8, 16, 30]
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("committing")]
    assert notes[0] == "committing: the Hub answered 503: Injected failure; trying again in 1 s"
    assert len(notes) == 6
    server._faults.clear()
    server.fail_next("POST", "/commit/", status=429, headers={"Retry-After": "3600"})
    waits.clear()
    with pytest.raises(PublishError, match="429"):
        push_folder(folder, "me/small")
    assert waits == []  # an hour is more than the whole budget
    server.fail_next("POST", "/repos/create", status=429, headers={"Retry-After": "250"}, times=3)
    with pytest.raises(PublishError, match="429"):
        push_folder(folder, "me/small")
    assert waits == [250, 250]


@pytest.mark.parametrize("status", [400, 404, 413])
def test_what_does_not_pass_is_not_tried_again(
    server: HubServer, folder: Path, status: int, waits: list[float]
) -> None:
    server.fail_next("POST", "/commit/", status=status)
    with pytest.raises(PublishError, match=f"the Hub answered {status}"):
        push_folder(folder, "me/small")
    assert waits == []
    assert sum("/commit/" in request.path for request in server.requests) == 1


@pytest.mark.parametrize(
    ("token", "place", "said"),
    [
        (None, "me/small", "you are not logged in: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_unknown", "me/small", "the Hub does not accept this token: make one at"),
        ("hf_readonly", "me/small", "this token may not write to me/small: log in with `hf auth login`"),
        (TOKEN, "stranger/small", "this token may not write to stranger/small"),
    ],
)
def test_who_may_not_is_told_what_to_do_in_one_line(
    server: HubServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    token: str | None,
    place: str,
    said: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    before = hashes(folder)
    assert main(["push", "--model", str(folder), "--repo-id", place]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1, error
    assert said in error
    assert f"{folder} is whole; try again with: ishrink push --model {folder} --repo-id {place}\n" in error
    assert not token or token not in error
    assert hashes(folder) == before and server.repos == {}


@pytest.mark.parametrize(
    ("token", "place", "said"),
    [
        (None, "me/x", "not logged in"),
        ("hf_unknown", "me/x", "does not accept this token"),
        ("hf_readonly", "me/x", "the token may only read"),
        (TOKEN, "stranger/x", "me may not write to stranger, but to me, team"),
    ],
)
def test_a_destination_is_checked_before_the_work(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None, place: str, said: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(PublishError, match=said) as caught:
        check_destination(place)
    assert str(caught.value).endswith("Nothing was begun")
    for fine in ("me/x", "x", "team/x"):
        check_destination(fine, token=TOKEN)


def test_a_hub_that_cannot_be_reached(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    server.drop_next("GET", "/whoami", times=100)
    with pytest.raises(
        PublishError, match=r"the connection was lost: .*leave out the push, and push the folder later"
    ):
        check_destination("me/x")
    assert len(waits) == 6
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    waits.clear()
    for ask in (lambda: check_destination("me/x"), lambda: push_folder(folder, "me/x")):
        with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set.*unset HF_HUB_OFFLINE to push"):
            ask()
    assert waits == []


@pytest.mark.parametrize("name", ["a/b/c", "me/", "me/a--b", "me/.hidden", "me/" + 97 * "x", "me/x y", "me/x.git", ""])
def test_a_name_that_is_none(
    server: HubServer, folder: Path, capsys: pytest.CaptureFixture, name: str, tmp_path: Path
) -> None:
    assert main(["push", "--model", str(folder), "--repo-id", name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "write user/name, or name alone for your own" in error
    if name:
        shrink = ["shrink", "--model", str(tmp_path), "--output", str(tmp_path / "out"), "--push-to-hub", name]
        assert main([*shrink, "--dry-run"]) == main(shrink) == 2
        assert "cannot be a repository on the Hub" in capsys.readouterr().err
    assert server.requests == []


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

    # One that is public is not hidden for a while, and is hidden for good where that is asked.
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    capsys.readouterr()
    push_folder(folder, "me/later", private_until_complete=True)
    assert "me/later is public already and stays so" in capsys.readouterr().err
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


def test_it_stays_private_when_the_upload_fails_and_goes_public_when_it_is_done(
    server: HubServer, folder: Path
) -> None:
    server.fail_next("POST", "/commit/", status=500, times=100)
    with pytest.raises(
        PublishError, match="is whole, and the repository stays private; try again with: .*-until-comp"
    ):
        push_folder(folder, "me/small", private_until_complete=True)
    assert server.repos["me/small"].private
    server._faults.clear()
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


@pytest.mark.parametrize("change", ["small", "large", "new", "gone", "same size and time"])
def test_a_file_that_changes_meanwhile_stops_the_push(server: HubServer, folder: Path, change: str) -> None:
    name = {"small": "config.json", "large": "model-1.safetensors", "new": "new.txt"}.get(change, "README.md")
    path = folder / name

    def act(request: Request) -> None:
        if request.method != "PUT" or (change != "gone" and path.exists() and path.read_bytes()[:3] == b"new"):
            return
        if change == "gone":
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


def test_someone_else_commits_meanwhile(server: HubServer, folder: Path) -> None:
    push_folder(folder, "me/small")
    (folder / "config.json").write_text('{"model_type": "mistral"}')

    def intrude(request: Request) -> None:
        if "/preupload/" in request.path:
            repo = server.repos["me/small"]
            repo.commits.append(type(repo.head)("f" * 40, "Other", dict(repo.head.files), repo.head.lfs_paths))
            server.on_request = lambda request: None

    server.on_request = intrude
    with pytest.raises(PublishError, match="someone else committed to me/small meanwhile"):
        push_folder(folder, "me/small")
    assert server.repos["me/small"].head.message == "Other"
    push_folder(folder, "me/small")
    assert server.repos["me/small"].head.files == named(folder)


def test_a_branch_that_is_not_there(server: HubServer, folder: Path) -> None:
    with pytest.raises(PublishError, match="make it with `hf repos branch create me/small v1`") as caught:
        push_folder(folder, "me/small", revision="v1", private=True)
    retry = f"ishrink push --model {folder} --repo-id me/small --private --revision v1"
    assert str(caught.value).endswith(f"try again with: {retry}")


SILENT: dict[str, Callable[[HubServer], None]] = {
    "create": lambda hub: hub.fail_next("POST", "/repos/create", status=400, message=f"bad {SECRET}"),
    "retried": lambda hub: hub.fail_next("POST", "/commit/", status=503, times=99, message=f"busy {SECRET}"),
    "put": lambda hub: hub.fail_next("PUT", "/lfs-storage", status=403, times=99, message=f"refused {SECRET}"),
    "dropped": lambda hub: hub.drop_next("POST", "/commit/", times=99),
    "batch": lambda hub: hub.fail_next("POST", "/objects/batch", status=403, times=99, message=f"no {SECRET}"),
    "card": lambda hub: hub.fail_next("POST", "/validate-yaml", status=400, message=f"yaml {SECRET}"),
    "settings": lambda hub: hub.fail_next("PUT", "/settings", status=403, message=f"no {SECRET}"),
    "who": lambda hub: hub.fail_next("GET", "/whoami", status=503, times=99, message=f"who {SECRET}"),
}


@pytest.mark.parametrize("path", SILENT)
@pytest.mark.parametrize("given", ["flag", "environment"])
def test_no_token_in_any_failure(
    server: HubServer,
    folder: Path,
    path: str,
    given: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET if given == "environment" else "")
    token = SECRET if given == "flag" else None
    SILENT[path](server)
    caplog.set_level("DEBUG")
    with pytest.raises(IShrinkError) as caught:
        if path == "who":
            check_destination("me/small", token=token)
        push_folder(folder, "me/small", token=token, private_until_complete=True)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("optimum"))
    out, error = capfd.readouterr()
    for text in (str(caught.value), repr(caught.value), out, error, ours):
        assert SECRET not in text
    assert "\n" not in str(caught.value)
    # What was sent to be stored holds none either; the token travels in one header alone, and never to the storage.
    for request in server.requests:
        assert SECRET not in request.path
        assert all(SECRET not in value for key, value in request.headers.items() if key != "authorization")
        assert not (request.method == "PUT" and "lfs-storage" in request.path and "authorization" in request.headers)


@pytest.mark.parametrize("name", ["README.md", "config.json", "ishrink_plan.json", "figures/notes.txt"])
def test_a_file_that_holds_the_token_is_not_sent(server: HubServer, folder: Path, name: str) -> None:
    (folder / name).write_text(f"--token {SECRET}")
    with pytest.raises(RequestError, match=f"{re.escape(name)} holds your Hub token; take it out") as caught:
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
    (moved / "ishrink_report.json").write_text(json.dumps({"shrunk": {"name": "small"}}))
    push_folder(moved, "me/small")
    assert b'from_pretrained("me/small"' in server.repos["me/small"].head.files["README.md"]


def test_what_is_no_checkpoint_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a checkpoint folder"):
        push_folder(tmp_path, "me/x")


@pytest.mark.parametrize("place", ["create_repo", "whoami"])
def test_a_fault_of_our_own_is_not_hidden(folder: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(f"huggingface_hub.HfApi.{place}", broken)
    monkeypatch.setattr("optimum_ishrink.hub.push._prepare", lambda *_: {})
    with pytest.raises(ZeroDivisionError):
        check_destination("me/x") if place == "whoami" else push_folder(folder, "me/x")


def test_a_failure_of_the_disk_is_no_failure_that_passes() -> None:
    error = OSError(28, "No space left on device")
    assert not passes(error)
    assert reason(error) == "[Errno 28] No space left on device"
    assert reason(ValueError()) == "ValueError"
    assert reason(ValueError("with hf_AbCdEf0123456789 in\nit")) == "with hf_*** in it"
