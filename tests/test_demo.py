"""The demo's settings. `test_real_model.py` runs it on the real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink.cli.program import main
from optimum_ishrink.demo import demo_config


def test_larger_targets_remove_more_layers() -> None:
    assert [demo_config(f"params=-{percent}%", 0).num_hidden_layers for percent in (10, 15, 20)] == [28, 27, 26]


def test_rows_and_neurons_are_left_to_the_solver() -> None:
    config = demo_config("params=-15%", 0)
    assert (config.vocab_size, config.intermediate_size, config.prune) == (None, None, None)


def test_recovery_starts_from_a_ridge_refit_on_text_sampled_by_the_model() -> None:
    plain, recovered = demo_config("params=-15%", 0), demo_config("params=-15%", 0, "kl")
    assert (plain.recovery, recovered.recovery) == ("none", "kl")
    assert recovered.compensates
    assert recovered.recovery_data == ("self",)
    assert plain.replace(recovery="kl", recovery_compensation="ridge") == recovered


def test_an_unknown_loss_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--recovery", "lk", "--output", str(tmp_path / "demo")]) == 2
    assert "unknown loss 'lk'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
