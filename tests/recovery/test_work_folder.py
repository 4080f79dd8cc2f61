from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink import RequestError
from optimum_ishrink.recovery.work_folder import checkpoints, discard_unused, open_work


@pytest.mark.parametrize("left", [".request.json.99.partial", ".rows.json.7.partial"])
def test_a_folder_in_which_nothing_was_computed_is_removed_after_a_kill_too(left: str, tmp_path: Path) -> None:
    folder = tmp_path / ".out.recovery"
    open_work(folder, {"seed": 0})
    (folder / left).write_bytes(b"{")
    discard_unused(folder)
    assert not folder.exists()


@pytest.mark.parametrize("kept", ["checkpoint-4", "text.safetensors", "mine.partial"])
def test_a_folder_in_which_anything_was_computed_stays(kept: str, tmp_path: Path) -> None:
    folder = tmp_path / ".out.recovery"
    open_work(folder, {"seed": 0})
    (folder / kept).mkdir()
    discard_unused(folder)
    assert (folder / kept).exists()


def test_the_work_of_another_request_is_refused(tmp_path: Path) -> None:
    open_work(tmp_path / "w", {"model": "z", "seed": 0})
    # Nothing is lost yet, so another request may take over.
    open_work(tmp_path / "w", {"model": "a", "seed": 0, "long": "x" * 99})
    (tmp_path / "w" / "checkpoint-3").mkdir()
    open_work(tmp_path / "w", {"model": "a", "seed": 0, "long": "x" * 99})
    with pytest.raises(RequestError, match=r"of another request: model \(\"a\" there, \"b\" now\).*delete the folder"):
        open_work(tmp_path / "w", {"model": "b", "seed": 0, "long": "x" * 99})
    (tmp_path / "w" / "request.json").write_text("{")
    with pytest.raises(RequestError, match="of another request"):
        open_work(tmp_path / "w", {"seed": 0})


def test_halves_of_checkpoints_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-4.partial").mkdir()
    (tmp_path / "checkpoint-2").mkdir()
    open_work(tmp_path, {"seed": 0})
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    assert not (tmp_path / "checkpoint-4.partial").exists()
