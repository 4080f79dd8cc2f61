"""Where caches are stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink.core.cache import cache_folder


def test_the_environment_sets_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ISHRINK_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ISHRINK_CACHE")
    assert cache_folder().name == "ishrink"
