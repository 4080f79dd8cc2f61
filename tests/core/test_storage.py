from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from optimum_ishrink.core import storage as storages
from optimum_ishrink.core.fetching import fetch_files
from optimum_ishrink.core.storage import Storage, is_url, open_storage
from optimum_ishrink.core.uploading import check_upload, upload
from optimum_ishrink.errors import OutputError, PublishError, RequestError, SourceError
from tests.helpers.memory_storage import failing, memory


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://bucket/x", True),
        ("memory://x", True),
        ("user/model", False),
        ("/a/b", False),
        ("C:\\models", False),
        (Path("s3:/x"), False),
    ],
)
def test_what_is_a_url(name: object, expected: bool) -> None:
    assert is_url(name) is expected


@pytest.mark.parametrize("url", ["sftp://me:hunter2@host:22/a", "s3://bucket/a?token=hunter2"])
def test_a_url_with_a_secret_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="holds a password or a query") as raised:
        open_storage(url, SourceError)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3x://bucket/x", "fsspec knows no s3x; it knows s3"),
        ("zip://x.zip::s3://bucket", "chains file systems"),
        ("memory://", "names no place; name a folder"),
        ("file:///", "names no place; name a folder"),
    ],
)
def test_a_url_that_cannot_be_opened(url: str, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        open_storage(url, OutputError)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(SourceError, match=r"s3://bucket/x: Install s3fs to access S3 \(pip install it\)"):
        storages.open_storage("s3://bucket/x", SourceError)


def test_a_file_system_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(url: str) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refused)
    with pytest.raises(SourceError, match="cannot open memory://host/x: ConnectionError: refused"):
        storages.open_storage("memory://host/x", SourceError)


def _output(folder: Path) -> Path:
    (folder / "figures").mkdir(parents=True)
    names = (
        "config.json",
        "tokenizer_config.json",
        "model.safetensors",
        "report.json",
        "figures/speed.png",
        "README.md",
    )
    for name in names:
        (folder / name).write_bytes(name.encode() * 3)
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_uploaded_and_fetched_as_it_is(tmp_path: Path) -> None:
    output = _output(tmp_path / "small")
    with memory():
        place = open_storage("memory://bucket/small", OutputError)
        check_upload(place, overwrite=False)
        upload(output, place)
        sizes = {name: size for name, (size, _) in place.list_files().items()}
        fetch_files(place, sizes, tmp_path / "fetched")
        assert _contents(tmp_path / "fetched") == _contents(output)
        with pytest.raises(OutputError, match="is not empty; name another place or pass --overwrite"):
            check_upload(place, overwrite=False)


def test_reading_a_file_does_not_change_its_key() -> None:
    info: dict[str, Any] = {"size": 2, "time": 1, "mtime": 1, "atime": 1}
    files = SimpleNamespace(invalidate_cache=lambda: None, find=lambda *_, **__: {"/small/config.json": dict(info)})
    place = Storage(files, "/small", "sftp://host/small")
    first = place.list_files()
    info |= {"time": 2, "atime": 2}  # as sftp and smb have them
    assert place.list_files() == first
    info["mtime"] = 2
    assert place.list_files() != first


def test_all_of_a_bucket_is_no_place_for_an_output() -> None:
    with (
        memory(),
        pytest.raises(OutputError, match="is a whole bucket or host; name a folder in it, memory://bucket/"),
    ):
        check_upload(open_storage("memory://bucket", OutputError), overwrite=True)


def test_folders_are_made_where_there_are_any(tmp_path: Path) -> None:
    made: list[str] = []

    class Bucket:
        def makedirs(self, path: str, exist_ok: bool) -> None:
            made.append(path)

    Storage(Bucket(), "bucket/place", "s3://bucket/place").make_folder_of("bucket/place/file")
    assert not made  # it might make a bucket
    Storage(Bucket(), "/place", "sftp://host/place").make_folder_of("/place/a/file")
    Storage(Bucket(), "C:/place", "file:///C:/place").make_folder_of("C:/place/file")
    assert made == ["/place/a", "C:/place"]


def test_what_was_there_before_goes_with_overwrite(tmp_path: Path) -> None:
    output = _output(tmp_path / "small")
    with memory() as files:
        place = open_storage("memory://bucket/small", OutputError)
        files.pipe_file("/bucket/small/old.safetensors", b"old")
        files.pipe_file("/bucket/small/config.json", b"old")
        check_upload(place, overwrite=True)
        upload(output, place)
        assert set(place.list_files()) == set(_contents(output))


def test_an_upload_that_fails_leaves_nothing_that_loads(tmp_path: Path) -> None:
    output = _output(tmp_path / "small")
    with failing(at=3) as files:
        place = open_storage("failing://bucket/small", OutputError)
        with pytest.raises(PublishError, match="small is complete, but cannot be uploaded to failing://bucket/small"):
            upload(output, place)
        assert set(place.list_files()) == {"README.md", "figures/speed.png", "model.safetensors"}
        type(files).fails_at = None
        upload(output, place)
        assert set(place.list_files()) == set(_contents(output))


@pytest.mark.parametrize("at", range(6))
def test_whatever_holds_a_config_is_whole(tmp_path: Path, at: int) -> None:
    output = _output(tmp_path / "small")
    with failing(at=at):
        place = open_storage("failing://bucket/small", OutputError)
        with pytest.raises(PublishError):
            upload(output, place)
        assert "config.json" not in place.list_files()


def test_the_message_of_a_failed_upload_says_how_to_try_again(tmp_path: Path) -> None:
    with failing(at=0):
        place = open_storage("failing://bucket/small", OutputError)
        with pytest.raises(PublishError) as raised:
            upload(_output(tmp_path / "small"), place)
    assert str(raised.value).endswith("small --url failing://bucket/small --overwrite tries again")


def test_what_comes_back_with_other_contents_is_reported(tmp_path: Path) -> None:
    with failing(changes="model.safetensors"):
        place = open_storage("failing://bucket/small", OutputError)
        with pytest.raises(PublishError, match=r"holds model\.safetensors with other contents"):
            upload(_output(tmp_path / "small"), place)
        assert "config.json" not in place.list_files()


def test_files_that_are_not_there_after_an_upload_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with memory():
        place = open_storage("memory://bucket/small", OutputError)
        monkeypatch.setattr(storages.Storage, "list_files", lambda self: {})
        with pytest.raises(PublishError, match=r"does not hold what was uploaded: README\.md"):
            upload(_output(tmp_path / "small"), place)


def test_one_file_replaces_another_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"new")
    with memory() as files:
        files.pipe_file("/bucket/small.gguf", b"old")
        place = open_storage("memory://bucket/small.gguf", OutputError)
        upload(file, place)
        assert {path: files.cat_file(path) for path in files.find("/bucket")} == {"/bucket/small.gguf": b"new"}


def test_a_place_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory() as files:
        place = open_storage("memory://bucket/small", OutputError)

        def refused(path: str, value: bytes) -> None:
            raise PermissionError("Access Denied")

        monkeypatch.setattr(files, "pipe_file", refused)
        monkeypatch.setattr(place, "files", files) if place.files is not files else None
        with pytest.raises(OutputError, match="cannot write memory://bucket/small: PermissionError: Access Denied"):
            check_upload(place, overwrite=False)


def test_a_fetch_that_was_stopped_goes_on_with_the_next_file(tmp_path: Path) -> None:
    with memory() as files:
        for name in ("a", "b"):
            files.pipe_file(f"/m/{name}", name.encode() * 4)
        place = open_storage("memory://m", SourceError)
        with pytest.raises(SourceError, match="gives 4 bytes of b, which has 5; run it again"):
            fetch_files(place, {"a": 4, "b": 5}, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        files.rm_file("/m/a")
        fetch_files(place, {"a": 4, "b": 4}, tmp_path)
        assert (tmp_path / "b").read_bytes() == b"bbbb"


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    with memory(), pytest.raises(SourceError, match="cannot read a of memory://m: FileNotFoundError"):
        fetch_files(open_storage("memory://m", SourceError), {"a": 4}, tmp_path)
