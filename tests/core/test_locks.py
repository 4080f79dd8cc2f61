from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from optimum_ishrink.core import locks
from optimum_ishrink.core.exchange import exchange
from optimum_ishrink.core.locks import claimed_folder, hidden_folder, try_lock
from optimum_ishrink.core.output import staged_folder
from optimum_ishrink.errors import OutputError
from tests.helpers.warm_process import run_warm

KILLED = """
import os, signal, sys
from pathlib import Path
from optimum_ishrink.core.output import staged_file, staged_folder
how = staged_folder if sys.argv[1] == "folder" else staged_file
with how(Path(sys.argv[2])) as staging:
    (staging / "half" if sys.argv[1] == "folder" else staging).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path, kind: str) -> None:
    done = run_warm([sys.executable, "-c", KILLED, kind, str(tmp_path / "a")])
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.")
    (tmp_path / ".a.mine.partial").mkdir()  # not one of ours
    with staged_folder(tmp_path / "a") as staging:
        assert not left.exists()
        (staging / "x").write_text("1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.mine.partial", "a"]


def test_a_run_that_was_killed_before_its_lock_leaves_nothing_for_good(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from optimum_ishrink.core import locks
locks._lock = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
with locks.hidden_folder(Path({str(tmp_path / "a")!r})):
    pass
"""
    assert run_warm([sys.executable, "-c", code]).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    with staged_folder(tmp_path / "a"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("moment", ["before the lock", "during the lock"])
def test_a_folder_that_another_run_took_for_abandoned_is_made_again(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if locks.fcntl is None:
        pytest.skip("this system has no locks")
    lock, seen = locks._lock, []

    def remove_first(folder: Path) -> tuple[int | None, bool]:
        seen.append(folder)
        if len(seen) > 1:
            return lock(folder)
        handle = try_lock_of_another(folder) if moment == "during the lock" else None
        found = lock(folder)
        folder.rmdir()
        if handle is not None:
            os.close(handle)
        return found

    def try_lock_of_another(folder: Path) -> int:
        handle, _ = lock(folder)
        assert handle is not None
        return handle

    monkeypatch.setattr(locks, "_lock", remove_first)
    with hidden_folder(tmp_path / "a") as folder:
        assert (folder.is_dir(), len(seen)) == (True, 2)
        assert lock(folder) == (None, True)


def test_what_a_run_still_fills_is_left_alone(tmp_path: Path) -> None:
    with hidden_folder(tmp_path / "a") as first, hidden_folder(tmp_path / "a") as second:
        assert first.is_dir() and second.is_dir() and first != second


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    with hidden_folder(tmp_path / "a") as first, hidden_folder(tmp_path / "a"):
        assert first.is_dir()
    with claimed_folder(tmp_path / "work", "trains"), claimed_folder(tmp_path / "work", "trains"):
        pass
    assert try_lock(tmp_path) is None


def test_a_working_folder_has_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "work"
    with claimed_folder(folder, "trains"):
        refused = pytest.raises(OutputError, match=r"another run trains in .*work; wait for it")
        with refused, claimed_folder(folder, "trains"):
            pass
        (folder / "x").write_text("1")
    assert (folder / "x").exists()
    (folder / "x").unlink()
    with claimed_folder(folder, "trains"):
        pass
    assert not folder.exists()


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with claimed_folder(tmp_path / "deep" / "work", "trains"):
        pass
    assert not any(tmp_path.iterdir())


def test_a_working_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    refused = pytest.raises(OutputError, match="cannot write .*work: Permission denied")
    with refused, claimed_folder(tmp_path / "work", "trains"):
        pass


def test_a_folder_that_is_gone_cannot_be_locked(tmp_path: Path) -> None:
    assert try_lock(tmp_path / "gone") is None


def test_two_folders_change_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()
    assert not exchange(tmp_path / "a", tmp_path / "gone")


def test_other_systems_do_not_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not exchange(tmp_path, tmp_path)
