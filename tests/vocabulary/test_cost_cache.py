"""What removing tokens costs, remembered."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.errors import DataError
from optimum_ishrink.text.sources import parse_sources
from optimum_ishrink.vocabulary.cost_cache import CostCache, RemovalCosts, counted_texts
from tests.helpers.tiny import edit_json

COSTS = RemovalCosts(7, np.array([0, 0.25, 1]), {"bytes": 4})


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISHRINK_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(llama_folder, tmp_path / "m")


def cache(folder: Path, calibration: str = "self", rows: int = 300, **options: Any) -> CostCache:
    config = IShrinkConfig(**options)
    return CostCache(folder, rows, config, counted_texts(config, parse_sources(calibration)))


def test_costs_are_read_as_they_were_written(folder: Path, text_file: Path) -> None:
    for calibration in ("self", "pydoc", f"self,{text_file}"):
        assert cache(folder, calibration).read() is None
        cache(folder, calibration).write(COSTS)
        found = cache(folder, calibration).read()
        assert found is not None
        assert (found.num_tokens, found.extra.tolist(), found.required) == (7, [0, 0.25, 1], {"bytes": 4})


def test_costs_are_those_of_one_request_and_one_model(folder: Path, text_file: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep.txt"
    keep.write_text("a")
    cache(folder, vocab_keep=str(keep)).write(COSTS)
    cache(folder).write(COSTS)
    for other in (
        cache(folder, rows=299),
        cache(folder, str(text_file)),
        cache(folder, vocab_text=[str(text_file)]),
        cache(folder, vocab_languages=["de"]),
        cache(folder, vocab_drop_reserved=True),
    ):
        assert other.read() is None
    assert cache(folder, seed=3, vocab_languages=["EN"]).read() is not None  # these change nothing
    assert cache(folder, vocab_keep=str(keep)).read() is not None
    keep.write_text("b")
    assert cache(folder, vocab_keep=str(keep)).read() is None
    edit_json(folder / "generation_config.json", eos_token_id=5)
    assert cache(folder).read() is None


def test_a_text_that_may_change_is_counted_every_time(folder: Path, tmp_path: Path) -> None:
    cache(folder, "org/texts").write(COSTS)
    assert cache(folder, "org/texts").read() is None
    cache(folder, vocab_keep="nowhere.txt").write(COSTS)
    assert cache(folder, vocab_keep="nowhere.txt").read() is None
    assert not (tmp_path / "cache").exists()


def test_a_missing_text_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt does not exist"):
        cache(folder, "nowhere.txt")


@pytest.mark.parametrize("contents", [b"", b"no archive", "half"])
def test_a_damaged_file_is_ignored(folder: Path, tmp_path: Path, contents: bytes | str) -> None:
    cache(folder).write(COSTS)
    (path,) = (tmp_path / "cache").rglob("*.npz")
    path.write_bytes(path.read_bytes()[:100] if isinstance(contents, str) else contents)
    assert cache(folder).read() is None
    cache(folder).write(COSTS)
    assert cache(folder).read() is not None


def test_a_cache_that_cannot_be_written_is_no_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISHRINK_CACHE", str(tmp_path / "file"))
    cache(folder).write(COSTS)
    assert cache(folder).read() is None
