"""The score cache: when scores are read from it, and when they are computed again."""

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
from optimum_ishrink.importance.score_cache import ScoreCache
from optimum_ishrink.importance.stage import score
from optimum_ishrink.text.calibration import Calibration
from tests.helpers.beginning import beginning_tokenizer
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


def test_it_names_the_entries_in_which_the_nearest_differ(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "none yet")
    assert cache.differences(KEY) == []
    cache.write({**KEY, "seed": 1, "text": ["b"]}, torch.zeros(1))
    cache.write({**KEY, "seed": 2}, torch.zeros(1))
    cache.write({**KEY, "dimension": "intermediate_size", "seed": 0}, torch.zeros(1))
    assert cache.differences(KEY) == ["seed"]


def test_files_that_cannot_be_read_are_ignored(tmp_path: Path) -> None:
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
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # no partial file is left


def test_a_folder_that_cannot_be_written_is_not_an_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    ScoreCache(blocked / "cache").write(KEY, torch.ones(2))
    assert ScoreCache(blocked / "cache").read(KEY) is None


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """The dimensions of every call that computes scores, with an empty cache."""
    monkeypatch.setenv("ISHRINK_CACHE", str(tmp_path / "cache"))
    calls: list[tuple[str, ...]] = []
    real = scoring.score_model

    def counting(*args: Any, **how: Any) -> dict[str, torch.Tensor]:
        calls.append(args[5])
        return real(*args, **how)

    monkeypatch.setattr(scoring, "score_model", counting)
    return calls


def run_scoring(folder: Path, keys: list[str], **options: Any) -> dict[str, torch.Tensor]:
    config = IShrinkConfig(**options)
    session = Session(open_source(folder), config)
    return score(session, config, Calibration(config, session), keys)


def test_a_second_run_scores_nothing_and_a_changed_one_says_why(
    counted: list[tuple[str, ...]], tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(tmp_path / "model", tiny_config("llama"))
    how = {"calibration": str(text_file), "calibration_samples": 8, "calibration_length": 16, "dtype": "float32"}
    keys = ["num_hidden_layers", "num_key_value_heads"]

    def run(wanted: list[str] = keys, **changes: Any) -> dict[str, torch.Tensor]:
        return run_scoring(folder, wanted, **{**how, **changes})

    first = run()
    again = run()
    assert len(counted) == 1
    assert all(torch.equal(first[key], again[key]) for key in keys)
    assert "read from the cache" in capsys.readouterr().err
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
        notes = capsys.readouterr().err
        assert "scored again, because" in notes
        assert next(iter(change)) in notes or change == {"calibration_samples": 9}
    changed_text = tmp_path / text_file.name
    changed_text.write_text(text_file.read_text().replace("fox", "cat"))
    before = len(counted)
    run(calibration=str(changed_text))
    assert len(counted) == before + 1
    assert "because calibration changed" in capsys.readouterr().err
    run(score_cache=False)
    assert len(counted) == before + 2
    # The same text in another file has the same key.
    copy = tmp_path / "elsewhere.txt"
    copy.write_bytes(text_file.read_bytes())
    run(calibration=str(copy))
    assert len(counted) == before + 2
    save_tiny(folder, tiny_config("llama"), seed=7)  # other weights under the same name
    run()
    assert len(counted) == before + 3


def test_criteria_of_weights_are_not_cached(counted: list[tuple[str, ...]], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", tiny_config("llama"))
    run_scoring(folder, ["intermediate_size"], importance="l2-norm")
    assert not (tmp_path / "cache").exists()


def test_windows_that_begin_with_bos_have_other_scores(
    counted: list[tuple[str, ...]], tmp_path: Path, text_file: Path
) -> None:
    folder = save_tiny(tmp_path / "model", tiny_config("llama"))
    how = {"calibration": str(text_file), "calibration_samples": 4, "calibration_length": 16, "dtype": "float32"}
    first = run_scoring(folder, ["num_hidden_layers"], **how)
    beginning_tokenizer().save_pretrained(folder)
    again = run_scoring(folder, ["num_hidden_layers"], **how)
    assert len(counted) == 2
    assert not torch.equal(first["num_hidden_layers"], again["num_hidden_layers"])
