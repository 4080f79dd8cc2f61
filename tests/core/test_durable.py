from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.core.durable import disk_errors, load_tensors, replace_file, save_tensors, write_whole
from optimum_ishrink.errors import OutputError


@given(old=st.none() | st.binary(max_size=64), new=st.binary(max_size=64), durable=st.booleans())
def test_a_file_is_written_or_replaced_and_nothing_else_is_left(
    old: bytes | None, new: bytes, durable: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("durable") / "notes.txt"
    if old is not None:
        path.write_bytes(old)
    replace_file(path, new, durable=durable)
    assert path.read_bytes() == new
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("method", ["write_bytes", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_what_cannot_be_replaced_is_unchanged_and_nothing_else_is_left(
    method: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, *_: object) -> None:
        if method == "write_bytes":
            self.touch()
        raise error

    path = tmp_path / "notes.txt"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, method, fail)
    with pytest.raises(type(error)):
        replace_file(path, b"new")
    monkeypatch.undo()
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("notes.txt", b"old")]


def test_a_reader_finds_the_old_file_or_the_whole_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"old")
    seen = []
    replace = Path.replace

    def look(self: Path, target: Path) -> Path:
        seen.append(path.read_bytes())
        assert self.name.startswith(".")
        assert self.read_bytes() == b"new"
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", look)
    replace_file(path, b"new")
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"


def test_a_folder_is_made_and_tensors_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([1], dtype=torch.int32)}
    save_tensors(tmp_path / "new" / "state.safetensors", tensors)
    found = load_tensors(tmp_path / "new" / "state.safetensors")
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_errors_of_the_disk_are_one_line_and_others_are_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="File exists; name another folder"):
        write_whole(tmp_path / "file" / "x", b"")
    with pytest.raises(OutputError, match=r"No space left on device; free some space .*again to resume"):  # noqa: SIM117
        with disk_errors(tmp_path, " to resume"):
            raise OSError(errno.ENOSPC, "")
    with pytest.raises(BlockingIOError), disk_errors(tmp_path):
        raise BlockingIOError(errno.EAGAIN, "")
