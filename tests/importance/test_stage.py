"""Scoring and choosing through the library and the command line, in every way that the config offers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import IShrinkConfig, IShrinker, RequestError
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import DataError
from optimum_ishrink.importance.criterion import LAYER_CRITERIA, UNIT_CRITERIA
from optimum_ishrink.report.scores import read_scores
from optimum_ishrink.text.calibration import Calibration
from tests.helpers.tiny import save_tiny, tiny_config, tiny_model

DEEP = 7


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven layers, of which 2, 3 and 4 change almost nothing."""
    folder = save_tiny(tmp_path_factory.mktemp("deep"), tiny_config("llama", num_hidden_layers=DEEP))
    model = tiny_model(tiny_config("llama", num_hidden_layers=DEEP))
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.mul_(1e-3 if number in (2, 3, 4) else 0.5 + 0.05 * number)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def how(text_file: Path) -> dict[str, Any]:
    return {
        "calibration": str(text_file),
        "calibration_samples": 6,
        "calibration_length": 16,
        "dtype": "float32",
        "device": "cpu",
        "keep_first_layers": 0,
        "keep_last_layers": 0,
    }


# The perplexity of a random model can fall without any layer, so it does not show which layers do nothing.
@pytest.mark.parametrize("importance", [name for name in LAYER_CRITERIA if name != "perplexity"])
def test_contiguous_finds_the_span_that_does_nothing(importance: str, deep_folder: Path, how: dict[str, Any]) -> None:
    shrinker = IShrinker.from_pretrained(deep_folder)
    plan = shrinker.plan(num_hidden_layers=4, layer_importance=importance, layer_selection="contiguous", **how)
    assert plan.layers == (0, 1, 5, 6)
    assert plan.choice.layer_selection == "contiguous"
    protected = {**how, "keep_first_layers": 3}
    plan = shrinker.plan(num_hidden_layers=5, layer_importance=importance, layer_selection="contiguous", **protected)
    assert plan.layers == (0, 1, 2, 5, 6)


@pytest.mark.parametrize("importance", ["divergence", "block-influence"])
def test_greedy_finds_the_layers_that_do_nothing(importance: str, deep_folder: Path, how: dict[str, Any]) -> None:
    shrinker = IShrinker.from_pretrained(deep_folder)
    plan = shrinker.plan(num_hidden_layers=4, layer_importance=importance, layer_selection="greedy", **how)
    assert plan.layers == (0, 1, 5, 6)
    protected = {**how, "keep_first_layers": 3}
    plan = shrinker.plan(num_hidden_layers=5, layer_importance=importance, layer_selection="greedy", **protected)
    assert plan.layers == (0, 1, 2, 5, 6)


def test_perplexity_chooses_like_brute_force(llama_folder: Path, how: dict[str, Any]) -> None:
    shrinker = IShrinker.from_pretrained(llama_folder)

    def chosen(selection: str, count: int) -> set[int]:
        choice = {"layer_importance": "perplexity", "layer_selection": selection}
        return {*range(4)} - {*shrinker.plan(num_hidden_layers=count, **choice, **how).layers}

    greedy, span = chosen("greedy", 1), chosen("contiguous", 2)
    session = shrinker._session
    assert session is not None
    windows = Calibration(IShrinkConfig(**how), session).windows

    def loss_without(removed: set[int]) -> float:
        model = copy.deepcopy(session.model)
        with torch.no_grad():
            for layer in removed:  # all weights zero: the identity
                for parameter in model.model.layers[layer].parameters():
                    parameter.zero_()
            return float(model(windows, labels=windows).loss)

    removed: set[int] = set()
    while len(removed) < 3:
        removed.add(min({*range(4)} - removed, key=lambda layer: loss_without({*removed, layer})))
    assert greedy == removed
    assert span == min(({start, start + 1} for start in range(3)), key=loss_without)


def test_sum_of_units_scores_a_layer_by_its_units(llama_folder: Path, how: dict[str, Any], tmp_path: Path) -> None:
    for importance in ("taylor", "l2-norm"):
        shrinker = IShrinker.from_pretrained(llama_folder)
        choice = {"importance": importance, "layer_importance": "sum-of-units", "evaluate": False, "benchmark": False}
        choice["compensation"] = "none"
        folder = tmp_path / importance
        result = shrinker.shrink(num_hidden_layers=3, save_directory=folder, **choice, **how)
        scores = read_scores(folder / "ishrink_importance.safetensors")
        assert set(scores) == {"num_hidden_layers"}
        whole = shrinker.shrink(num_key_value_heads=2, intermediate_size=16, **choice, **how)
        units = read_scores(whole.folder / "ishrink_importance.safetensors")
        expected = units["num_key_value_heads"].sum(1) + units["intermediate_size"].sum(1)
        torch.testing.assert_close(scores["num_hidden_layers"], expected)
        assert result.plan.layers == tuple(sorted(expected.argsort()[1:].tolist()))
        assert result.plan.choice.importance == importance
        assert (result.plan.choice.calibration is None) == (importance == "l2-norm")
        card = (folder / "README.md").read_text()
        assert f"scored by **sum-of-units** (units by\n**{importance}**)" in card
        assert "Heads and neurons were scored" not in card


@pytest.mark.parametrize("selection", ["greedy", "contiguous"])
def test_the_card_says_how_layers_were_chosen(
    selection: str, llama_folder: Path, how: dict[str, Any], tmp_path: Path
) -> None:
    words = {"greedy": "scored again after each", "contiguous": "adjacent layers that cost least together"}
    quick = {"evaluate": False, "benchmark": False, "save_directory": tmp_path / "o"}
    IShrinker.from_pretrained(llama_folder).shrink(num_hidden_layers=2, layer_selection=selection, **quick, **how)
    assert words[selection] in (tmp_path / "o" / "README.md").read_text()


@pytest.mark.parametrize("importance", UNIT_CRITERIA.names())
def test_every_criterion_makes_a_plan(importance: str, llama_folder: Path, how: dict[str, Any]) -> None:
    shape = {"num_key_value_heads": 2, "num_attention_heads": 2, "intermediate_size": 16}
    plan = IShrinker.from_pretrained(llama_folder).plan(importance=importance, importance_group_size=8, **shape, **how)
    for row in plan.units["intermediate_size"]:
        assert {neuron // 8 for neuron in row} == {neuron // 8 for neuron in row[::8]}  # whole groups are retained
        assert len(row) == 16
    assert plan.choice.importance == importance


def test_a_group_size_that_does_not_divide_is_refused_before_the_model_is_loaded(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("optimum_ishrink.checkpoint.source.load_model", lambda *_: pytest.fail("the model was loaded"))
    arguments = ["plan", "--model", str(llama_folder), "--intermediate-size", "16", "--importance-group-size", "7"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "importance_group_size=7 does not divide the 24 neurons of an MLP; use 6 or 8" in error
    assert error.count("\n") == 1


def test_criteria_that_cannot_score_experts_are_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimum_ishrink.checkpoint.source.load_model", lambda *_: pytest.fail("the model was loaded"))
    folder = save_tiny(tmp_path / "moe", tiny_config("mixtral"))
    for importance in ("obs", "logits-mse", "thesis-mix"):
        with pytest.raises(
            RequestError, match=f"'{importance}' cannot see into experts; importance can be activation-norm, fisher,"
        ):
            IShrinker.from_pretrained(folder).plan(intermediate_size=16, importance=importance)
        with pytest.raises(RequestError, match=f"'{importance}' cannot see into experts"):
            choice = {"importance": importance, "layer_importance": "sum-of-units"}
            IShrinker.from_pretrained(folder).plan(num_hidden_layers=3, **choice)


def test_text_shorter_than_a_window_is_one_line(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("too short")
    arguments = ["plan", "--model", str(llama_folder), "--num-hidden-layers", "3"]
    assert main([*arguments, "--calibration", str(tmp_path / "short.txt")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ishrink plan: error: short.txt gives 10 tokens")


def test_values_that_are_not_finite_are_one_line(tmp_path: Path, how: dict[str, Any]) -> None:
    folder = save_tiny(tmp_path / "m", tiny_config("llama"))
    model = tiny_model(tiny_config("llama"))
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("inf")
    model.save_pretrained(folder)
    for shape in ({"intermediate_size": 16}, {"num_hidden_layers": 3}):
        with pytest.raises(DataError, match="layer 2.*infinite values.*; try dtype='float32'|not finite in layer 2"):
            IShrinker.from_pretrained(folder).plan(**shape, **how)


@pytest.mark.parametrize("verb", ["plan", "shrink"])
def test_help_lists_the_criteria_and_needs_no_model(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--importance", "help"]) == 0
    out = capsys.readouterr().out
    for name in UNIT_CRITERIA:
        assert f"\n  {name} " in out
    assert "block-influence" not in out
    assert "weights only" in out
    assert "forward and backward passes" in out
    assert main([verb, "--layer-importance", "help", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found["layer_importance"]
    assert [row["name"] for row in rows] == LAYER_CRITERIA.names()
    assert all(row.keys() == {"name", "score", "takes", "source"} and all(row.values()) for row in rows)


def test_a_recipe_without_a_model_takes_the_given_one(llama_folder: Path, how: dict[str, Any], tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    out = tmp_path / "plan.json"
    arguments = ["plan", "--model", str(llama_folder), "--config", str(root / "configs" / "l2-mlp.yaml")]
    assert main([*arguments, "--intermediate-multiple", "1", "--output", str(out)]) == 0
    plan = json.loads(out.read_text())
    assert {key for key in plan["shape"] if plan["shape"][key] != plan["new_shape"][key]} == {"intermediate_size"}
    assert plan["choice"]["importance"] == "l2-norm"
    assert plan["choice"]["layer_importance"] is None
