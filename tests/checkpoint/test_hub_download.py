from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import SourceError


def test_the_hub_client_is_asked_for_what_is_needed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    commit = folder.rename(folder.parent / ("a1" * 20))
    asked: dict[str, object] = {}

    def download(repo_id: str, **kwargs: object) -> str:
        asked.update(kwargs, repo_id=repo_id)
        return str(commit)

    monkeypatch.setattr("optimum_ishrink.checkpoint.hub_download.snapshot_download", download)
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

        monkeypatch.setattr("optimum_ishrink.checkpoint.hub_download.snapshot_download", fail)
        with pytest.raises(SourceError, match=message):
            open_source("org/model", revision="main")


def test_messages_of_the_system_and_of_dropped_connections_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = type("RemoteProtocolError", (Exception,), {"__module__": "httpx2"})
    for error, message in (
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("no errno"), "the Hub cannot be reached"),
        (dropped("Server disconnected\nwithout a word"), r"broke \(Server disconnected without a word\); try again"),
        (dropped(), r"broke \(RemoteProtocolError\)"),
    ):

        def fail(repo_id: str, error: Exception = error, **_: object) -> str:
            raise error

        monkeypatch.setattr("optimum_ishrink.checkpoint.hub_download.snapshot_download", fail)
        with pytest.raises(SourceError, match=message) as caught:
            open_source("org/model")
        assert "\n" not in str(caught.value)

    def broken(repo_id: str, **_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("optimum_ishrink.checkpoint.hub_download.snapshot_download", broken)
    with pytest.raises(ZeroDivisionError):
        open_source("org/model")


def test_a_hub_repository_of_pickles_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def files(api: object, repo_id: str, *, revision: str | None) -> list[str]:
        asked.append((repo_id, revision))
        return ["config.json", "original/consolidated.00.pth"]

    def unreachable(api: object, repo_id: str, *, revision: str | None) -> list[str]:
        raise ConnectionError

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("optimum_ishrink.checkpoint.hub_download.snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr("optimum_ishrink.checkpoint.hub_download.HfApi.list_repo_files", files)
    with pytest.raises(SourceError, match="org/model holds its weights only as pickle .*consolidated.00.pth"):
        open_source("org/model", revision="v1")
    assert asked == [("org/model", "v1")]
    monkeypatch.setattr("optimum_ishrink.checkpoint.hub_download.HfApi.list_repo_files", unreachable)
    open_source("org/model")
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("optimum_ishrink.checkpoint.hub_download.HfApi.list_repo_files", files)
    open_source("org/model")
    assert len(asked) == 1


def test_second_copies_of_the_weights_are_not_downloaded(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, list[str]] = {}

    def download(repo_id: str, **kwargs: list[str]) -> str:
        asked.update(kwargs)
        return str(folder)

    monkeypatch.setattr("optimum_ishrink.checkpoint.hub_download.snapshot_download", download)
    open_source("org/model")
    names = ["consolidated.safetensors", "consolidated.safetensors.index.json", "original/params.json", "a.bin"]
    needed = ["model.safetensors", "config.json", "README.md"]
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects([*names, *needed], **patterns)) == needed
