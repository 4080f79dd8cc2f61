"""The teacher's words from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink.recovery.teacher import LiveTeacher
from optimum_ishrink.recovery.teacher_cache import CachedTeacher
from optimum_ishrink.recovery.teacher_choice import choose_teacher
from tests.helpers.small_recovery import go, random_text, settings, shallow

CPU = torch.device("cpu")


@pytest.mark.parametrize("k", [8, 1000])
def test_the_cache_gives_the_same_curve(k: int, tmp_path: Path) -> None:
    text, teacher = random_text(16), shallow()
    changes: dict[str, Any] = {"top_k": k, "epochs": 2, "temperature": 1.5}
    how = settings(**changes)
    live = go(tmp_path / "live", LiveTeacher(teacher, k=k, temperature=1.5), text=text, **changes)
    cached = choose_teacher(lambda: (teacher,), how, text, tmp_path / "cache", 3, device=CPU)
    assert isinstance(cached, CachedTeacher)
    found = go(tmp_path / "cached", cached, text=text, **changes)
    torch.testing.assert_close(torch.tensor(found.losses), torch.tensor(live.losses), atol=1e-3, rtol=1e-3)
    sizes = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.npy"))
    assert sizes == 16 * 15 * (6 * min(k, 300) + 4) + 3 * 128
    if k >= 300:
        whole = go(tmp_path / "whole", LiveTeacher(teacher), text=text, epochs=2, temperature=1.5)
        torch.testing.assert_close(torch.tensor(found.losses), torch.tensor(whole.losses), atol=1e-3, rtol=1e-3)


def test_the_cache_is_filled_once_and_only_where_it_says_all(tmp_path: Path) -> None:
    text, teacher = random_text(), shallow()
    assert choose_teacher(lambda: (), settings(), text, tmp_path / "c", 4, device=CPU) is None
    assert choose_teacher(lambda: (teacher,), settings(loss="ce"), text, tmp_path / "c", 4, device=CPU) is None
    assert isinstance(choose_teacher(lambda: (teacher,), settings(), text, tmp_path / "c", 4, device=CPU), LiveTeacher)
    both = settings(loss="kl+hidden:0.1", top_k=4, epochs=2)
    assert not both.caches_teacher
    assert isinstance(choose_teacher(lambda: (teacher,), both, text, tmp_path / "c", 4, device=CPU), LiveTeacher)
    assert not (tmp_path / "c").exists()
    choose_teacher(lambda: (teacher,), settings(top_k=4), text, tmp_path / "c", 4, device=CPU)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    choose_teacher(lambda: (teacher,), settings(top_k=4), text, tmp_path / "c", 4, device=CPU)
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    assert json.loads((tmp_path / "c" / "shape.json").read_text()) == {"windows": 36, "length": 16, "k": 4}
    assert settings(top_k=4, epochs=2).caches_teacher
    assert settings(top_k=4, cache=str(tmp_path)).caches_teacher
    assert not settings(top_k=4).caches_teacher
    assert not settings(epochs=2).caches_teacher
