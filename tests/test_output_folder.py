from __future__ import annotations

import os
from pathlib import Path

import pytest

from optimum_ishrink.errors import OutputError
from optimum_ishrink.output_folder import check_output, staged_folder


def test_the_folder_appears_whole(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "a" / "b") as staging:
        (staging / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "x").read_text() == "1"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_when_it_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged_folder(tmp_path / "deep" / "er" / "a") as staging:
        (staging / "x").write_text("1")
        raise error
    assert not any(tmp_path.iterdir())


def test_what_is_there_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    with pytest.raises(OutputError, match="--overwrite"), staged_folder(tmp_path / "a"):
        pass
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "a", overwrite=True):
        raise RuntimeError
    assert (tmp_path / "a" / "old").read_text() == "old"
    with staged_folder(tmp_path / "a", overwrite=True) as staging:
        (staging / "new").write_text("new")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "a", overwrite=True)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="no permission"):
        check_output(tmp_path / "a" / "b", overwrite=False)


def test_a_place_where_no_folder_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(OutputError, match="No space left"), staged_folder(tmp_path / "a"):
        pass


def test_a_failing_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="Permission denied"), staged_folder(tmp_path / "a", overwrite=True):
        pass
    assert (tmp_path / "a" / "old").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
