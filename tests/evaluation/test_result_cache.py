from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimum_ishrink.evaluation.result_cache import ResultCache

KEY = {"kind": "task", "name": "quiz", "versions": ("1", "2")}


def test_a_result_is_read_for_the_same_key_only(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "results")
    assert cache.read(KEY) is None
    cache.write(KEY, {"acc": [1.0, 0.0]})
    assert ResultCache(tmp_path / "results").read(KEY) == {"acc": [1.0, 0.0]}
    assert cache.read({**KEY, "name": "other"}) is None
    assert [path.name.split("-")[0] for path in (tmp_path / "results").iterdir()] == ["task"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"key": {"kind": "task"}, "result": 1}'])
def test_a_foreign_file_is_ignored(tmp_path: Path, text: str) -> None:
    cache = ResultCache(tmp_path)
    cache.write(KEY, 1)
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["result"] == 1
    path.write_text(text)
    assert cache.read(KEY) is None


def test_an_unwritable_folder_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ResultCache(tmp_path / "file" / "results")
    cache.write(KEY, 1)
    assert cache.read(KEY) is None


def test_without_a_folder_nothing_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ResultCache(None).write(KEY, 1)
    assert ResultCache(None).read(KEY) is None
    assert not any(tmp_path.iterdir())
