from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink.search.store import Store


def refuse() -> object:
    raise AssertionError("measured again")


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    first = Store(tmp_path, {"model": "a"})
    assert first.measured("x", lambda: {"value": 1.5}) == {"value": 1.5}
    again = Store(tmp_path, {"model": "a"})
    assert again.resumed == 1
    assert again.measured("x", refuse) == {"value": 1.5}
    assert again.has("x") and not again.has("y")


def test_a_line_that_a_kill_left_unfinished_is_ignored(tmp_path: Path) -> None:
    store = Store(tmp_path, {})
    store.add("x", 1)
    with (tmp_path / "measured.jsonl").open("a") as file:
        file.write('{"name": "y", "val')
    again = Store(tmp_path, {})
    assert again.resumed == 1
    again.add("z", 3)
    last = Store(tmp_path, {})
    assert (last.has("x"), last.has("y"), last.has("z")) == (True, False, True)


def test_another_request_starts_over_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path, {"model": "a", "seed": 0}).add("x", 1)
    (tmp_path / "base.gguf").write_text("the other model's")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").touch()
    assert not Store(tmp_path, {"model": "b", "seed": 0}).has("x")
    assert "(model differ)" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["request.json"]
    assert not Store(tmp_path, {"model": "b", "seed": 0}).has("x")
