from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.importance import stage as scoring
from optimum_ishrink.importance.score_cache import ScoreCache, cache_folder
from optimum_ishrink.importance.stage import score
from tests.helpers.tiny import save_tiny, tiny_config

KEY: dict[str, Any] = {"criterion": "taylor", "dimension": "num_hidden_layers", "seed": 0, "text": ["a", None]}
values = st.one_of(st.none(), st.integers(-9, 9), st.text(max_size=5))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=st.dictionaries(st.sampled_from(["seed", "text", "other", "criterion"]), values, min_size=1))
def test_only_the_same_key_finds_the_scores(change: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = ScoreCache(tmp_path_factory.mktemp("cache"))
    cache.write(KEY, torch.arange(6.0).view(2, 3))
    other = {**KEY, **change}
    assert (cache.read(other) is not None) == (other == KEY)
    assert torch.equal(cache.read(dict(reversed(KEY.items()))), torch.arange(6.0).view(2, 3))


def test_it_says_in_what_the_nearest_differ(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "none yet")
    assert cache.differences(KEY) == []
    cache.write({**KEY, "seed": 1, "text": ["b"]}, torch.zeros(1))
    cache.write({**KEY, "seed": 2}, torch.zeros(1))
    cache.write({**KEY, "dimension": "intermediate_size", "seed": 0}, torch.zeros(1))
    assert cache.differences(KEY) == ["seed"]


def test_what_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path)
    cache.write(KEY, torch.ones(2))
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(b"broken")
    assert cache.read(KEY) is None
    assert cache.differences(KEY) == []
    save_file({"scores": torch.zeros(2)}, path, metadata={"key": "{"})
    assert cache.read(KEY) is None
    cache.write(KEY, torch.ones(2))
    assert torch.equal(cache.read(KEY), torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # nothing half written is left


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    ScoreCache(blocked / "cache").write(KEY, torch.ones(2))
    assert ScoreCache(blocked / "cache").read(KEY) is None


def test_it_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ISHRINK_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ISHRINK_CACHE")
    assert cache_folder().name == "ishrink"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """The dimensions of every call that really scores, with a cache of the test's own."""
    monkeypatch.setenv("ISHRINK_CACHE", str(tmp_path / "cache"))
    calls: list[tuple[str, ...]] = []
    real = scoring.score_model

    def counting(*args: Any, **how: Any) -> dict[str, torch.Tensor]:
        calls.append(args[5])
        return real(*args, **how)

    monkeypatch.setattr(scoring, "score_model", counting)
    return calls


def test_a_second_run_scores_nothing_and_a_changed_one_says_why(
    counted: list[tuple[str, ...]], tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(tmp_path / "model", tiny_config("llama"))
    how = {"calibration": str(text_file), "calibration_samples": 8, "calibration_length": 16, "dtype": "float32"}
    keys = ["num_hidden_layers", "num_key_value_heads"]

    def run(wanted: list[str] = keys, **changes: Any) -> dict[str, torch.Tensor]:
        return score(Session(open_source(folder), IShrinkConfig(**{**how, **changes})), wanted)

    first = run()
    again = run()
    assert len(counted) == 1
    assert all(torch.equal(first[key], again[key]) for key in keys)
    assert "taken from the cache" in capsys.readouterr().err
    run([*keys, "intermediate_size"])  # only what is missing is scored
    assert counted[1:] == [("intermediate_size",)]
    for change in (
        {"seed": 1},
        {"calibration_samples": 9},
        {"importance_samples": 4},
        {"batch_size": 2},
        {"dtype": "bfloat16"},
    ):
        before = len(counted)
        run(**change)
        assert len(counted) == before + 1, change
        said = capsys.readouterr().err
        assert "scored again, since" in said
        assert next(iter(change)) in said or change == {"calibration_samples": 9}
    text_file_of_other_words = tmp_path / text_file.name
    text_file_of_other_words.write_text(text_file.read_text().replace("fox", "cat"))
    before = len(counted)
    run(calibration=str(text_file_of_other_words))
    assert len(counted) == before + 1
    assert "since calibration changed" in capsys.readouterr().err
    run(score_cache=False)
    assert len(counted) == before + 2
    # The same words elsewhere, and the same weights elsewhere, are the same.
    copy = tmp_path / "elsewhere.txt"
    copy.write_bytes(text_file.read_bytes())
    run(calibration=str(copy))
    assert len(counted) == before + 2
    save_tiny(folder, tiny_config("llama"), seed=7)  # other weights under the same name
    run()
    assert len(counted) == before + 3


def test_criteria_of_weights_are_not_kept(counted: list[tuple[str, ...]], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", tiny_config("llama"))
    score(Session(open_source(folder), IShrinkConfig(importance="l2-norm")), ["intermediate_size"])
    assert not (tmp_path / "cache").exists()
