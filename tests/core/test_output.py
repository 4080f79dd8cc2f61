from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from optimum_ishrink.core.output import check_not_inside, check_output, check_output_file, staged_file, staged_folder
from optimum_ishrink.errors import OutputError


def test_a_folder_appears_complete(tmp_path: Path) -> None:
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


def test_an_existing_folder_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
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


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "a", overwrite=True)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="no permission"):
        check_output(tmp_path / "a" / "b", overwrite=False)


def test_a_location_where_no_folder_can_be_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(OutputError, match="No space left"), staged_folder(tmp_path / "deep" / "a"):
        pass
    assert not any(tmp_path.iterdir())


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that cannot exchange two folders: the old one is moved aside first."""
    monkeypatch.setattr("optimum_ishrink.core.output.exchange", lambda *_: False)


def test_an_old_folder_is_exchanged_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    seen = []

    def look(aside: Path, folder: Path) -> None:
        seen.append(([path.name for path in folder.iterdir()], [path.name for path in aside.iterdir()]))

    monkeypatch.setattr("optimum_ishrink.core.output._remove", look)
    with staged_folder(tmp_path / "a", overwrite=True) as staging:
        (staging / "new").write_text("new")
    assert seen in ([], [(["new"], ["old"])])  # nothing to see where the file system cannot exchange


def test_a_folder_that_another_program_filled_is_not_replaced(tmp_path: Path) -> None:
    refused = pytest.raises(OutputError, match="is not empty any more: another program wrote to it")
    with refused, staged_folder(tmp_path / "a") as staging:
        (staging / "mine").write_text("mine")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "theirs").write_text("theirs")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["theirs"]
    with pytest.raises(OutputError, match="already exists"), staged_file(tmp_path / "b") as staging:
        staging.write_text("mine")
        (tmp_path / "b").write_text("theirs")
    assert (tmp_path / "b").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_failing_rename_of_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EACCES, "Permission denied")
        return real(self, target)

    real = Path.rename
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="cannot write .*a: Permission denied"), staged_folder(tmp_path / "a"):
        pass


@pytest.mark.usefixtures("no_exchange")
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


@pytest.mark.parametrize("filled", [False, True])
def test_a_link_is_followed(tmp_path: Path, filled: bool) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    if filled:
        (tmp_path / "disk" / "real" / "old").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    with staged_folder(tmp_path / "link", overwrite=filled) as staging:
        (staging / "new").write_text("new")
        assert staging.parent == tmp_path / "disk"
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "link").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


@pytest.mark.parametrize("name", ["../b", "../c/../b", "c/../../b/."])
def test_dots_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old").write_text("old")
    monkeypatch.chdir(tmp_path / "work")
    with staged_folder(Path(name), overwrite=True) as staging:
        (staging / "new").write_text("new")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "work"]


@pytest.mark.parametrize("name", [".", "..", "../work"])
def test_the_working_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(OutputError, match="is the working directory or holds it"):
        check_output(Path(name), overwrite=True)


def test_a_working_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work").rmdir()
    check_output(tmp_path / "a", overwrite=False)
    with pytest.raises(OutputError, match="cannot be resolved"):
        check_output(Path("a"), overwrite=False)


def test_a_mount_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="^/ is a mount point, .*; name a folder in it$"):
        check_output(Path("/"), overwrite=True)
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "disk")
    with pytest.raises(OutputError, match="disk is a mount point"), staged_folder(tmp_path / "disk"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def test_circular_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OutputError, match="cannot be resolved|cannot read"):
        check_output(tmp_path / "a", overwrite=False)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(OutputError, match="cannot read .*/a: Permission denied"):
        check_output(tmp_path / "a", overwrite=False)


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("error", [OSError(errno.EBUSY, "Device or resource busy"), KeyboardInterrupt()])
def test_an_old_folder_that_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if isinstance(error, KeyboardInterrupt):
            rename(self, target)
        raise error

    monkeypatch.setattr(
        Path, "rename", lambda self, target: fail(self, target) if self.name == "a" else rename(self, target)
    )
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), staged_folder(tmp_path / "a", overwrite=True):
        pass
    assert (tmp_path / "a" / "old").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), KeyboardInterrupt()])
def test_the_old_folder_is_removed_even_if_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    (tmp_path / "a" / "protected").mkdir(parents=True)
    (tmp_path / "a" / "protected" / "old").write_text("old")
    remove = shutil.rmtree
    failures = [error]

    def fail_once(path: Path, ignore_errors: bool = False) -> None:
        if failures:
            raise failures.pop()
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", fail_once)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "a", overwrite=True):
            pass
    else:
        with staged_folder(tmp_path / "a", overwrite=True):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert not any((tmp_path / "a").iterdir())


@pytest.mark.usefixtures("no_exchange")
def test_an_old_folder_that_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")

    def fail(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(shutil, "rmtree", fail)
    message = r"a is complete, .*not permitted; remove .*\.old$"
    with pytest.raises(OutputError, match=message), staged_folder(tmp_path / "a", overwrite=True) as staging:
        (staging / "new").write_text("new")
    assert (tmp_path / "a" / "new").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG])
def test_the_error_of_a_full_or_protected_disk_is_one_line(tmp_path: Path, number: int) -> None:
    with pytest.raises(OutputError) as caught, staged_folder(tmp_path / "deep" / "a") as staging:
        raise OSError(number, "...", str(staging / "config.json"))
    assert str(caught.value) == f"cannot write {tmp_path / 'deep' / 'a'}: {os.strerror(number)}"
    with pytest.raises(OutputError, match=r"\(/elsewhere/x\)$"), staged_folder(tmp_path / "a"):
        raise OSError(number, "...", "/elsewhere/x")
    assert not any(tmp_path.iterdir())


def test_other_errors_are_passed_on(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "a"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")


def test_an_input_is_not_overwritten(tmp_path: Path) -> None:
    model = tmp_path / "out" / "model"
    model.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "words").symlink_to(model / "words.txt")
    with pytest.raises(OutputError, match="model is the input .*model; name another output folder"):
        check_not_inside(model, [model])
    for path in (model, tmp_path / "words", model / "not-there.txt", tmp_path / "x" / ".." / "out" / "model"):
        with pytest.raises(OutputError, match="holds the input"):
            check_not_inside(tmp_path / "link", [tmp_path, path])
    check_not_inside(tmp_path / "other", [model, tmp_path, tmp_path / "other.txt"])
    check_not_inside(model / "small", [model, tmp_path / "words"])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_file_appears_complete_or_not_at_all(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged_file(tmp_path / "a") as staging:
        staging.write_text("1")
        raise error
    assert not any(tmp_path.iterdir())
    with staged_file(tmp_path / "a") as staging:
        staging.write_text("1")
        assert not (tmp_path / "a").exists()
    with pytest.raises(OutputError, match="--overwrite"), staged_file(tmp_path / "a"):
        pass
    with staged_file(tmp_path / "a", overwrite=True) as staging:
        staging.write_text("2")
    assert (tmp_path / "a").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="cannot write .*: No space left on device"), staged_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(OSError, match="another"), staged_file(tmp_path / "a"):
        raise OSError(errno.EIO, "another")

    def full(**_: object) -> str:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", full)
        with pytest.raises(OutputError, match="cannot write in .*: No space left"), staged_file(tmp_path / "a"):
            pass
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="no permission to write in"):
        check_output_file(tmp_path / "a", overwrite=False)
