from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink.recovery.work_folder import discard_unused, open_work


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
