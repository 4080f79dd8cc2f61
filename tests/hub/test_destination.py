"""Destinations of a push: names, tokens and a Hub that cannot be reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import PublishError
from optimum_ishrink.hub.destination import check_destination
from optimum_ishrink.hub.push import push_folder
from tests.helpers.hub_server import TOKEN, HubServer
from tests.helpers.push_folder import hashes


@pytest.mark.parametrize(
    ("token", "place", "message"),
    [
        (None, "me/small", "you are not logged in: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_unknown", "me/small", "the Hub does not accept this token: create one at"),
        ("hf_readonly", "me/small", "this token cannot write to me/small: log in with `hf auth login`"),
        (TOKEN, "other/small", "this token cannot write to other/small"),
    ],
)
def test_a_refused_push_says_what_to_do_in_one_line(
    server: HubServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    token: str | None,
    place: str,
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    before = hashes(folder)
    assert main(["push", "--model", str(folder), "--repo-id", place]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1, error
    assert message in error
    assert f"{folder} is complete; try again with: ishrink push --model {folder} --repo-id {place}\n" in error
    assert not token or token not in error
    assert hashes(folder) == before and server.repos == {}


@pytest.mark.parametrize(
    ("token", "place", "message"),
    [
        (None, "me/x", "not logged in"),
        ("hf_unknown", "me/x", "does not accept this token"),
        ("hf_readonly", "me/x", "the token can only read"),
        (TOKEN, "other/x", "me cannot write to other, only to me, team"),
    ],
)
def test_a_destination_is_checked_before_the_work(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None, place: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(PublishError, match=message) as caught:
        check_destination(place)
    assert str(caught.value).endswith("Nothing was started")
    for valid in ("me/x", "x", "team/x"):
        check_destination(valid, token=TOKEN)


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
def test_an_invalid_name_is_refused(
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
