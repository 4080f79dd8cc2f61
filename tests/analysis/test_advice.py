from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import pytest

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.analysis.advice import Advice, advise, furthest_below, protection_needed
from optimum_ishrink.analysis.advised_command import advised_command
from optimum_ishrink.analysis.options import AnalysisOptions
from optimum_ishrink.cli.parser import Parser, add_verbs
from optimum_ishrink.cli.requests import read_request
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.report.analysis import LayerSensitivity, SparsityLevel
from optimum_ishrink.report.measurement import Measurement

SHAPE = {"num_hidden_layers": 4, "num_key_value_heads": 4, "num_attention_heads": 8, "intermediate_size": 24}


def kl(value: float) -> Measurement:
    return Measurement("kl_divergence", "text", value, 0.01, 8)


def levels(kind: str, *found: tuple[float, float, float]) -> tuple[SparsityLevel, ...]:
    """Levels of (sparsity, removed share, divergence)."""
    return tuple(
        SparsityLevel(kind, sparsity, {}, round(removed * 1000), removed, (kl(value),))
        for sparsity, removed, value in ((0.0, 0.0, 0.0), *found)
    )


def layers(*blocks: float) -> list[LayerSensitivity]:
    return [LayerSensitivity(i, kl(value / 3), kl(value / 2), kl(value)) for i, value in enumerate(blocks)]


KINDS = {
    "attention": levels("attention", (0.1, 0.02, 0.3), (0.2, 0.04, 0.6)),
    "mlp": levels("mlp", (0.1, 0.0567, 0.2), (0.2, 0.12, 0.49)),
    "layers": levels("layers", (0.1, 0.1, 0.4), (0.2, 0.2, 0.7), (0.3, 0.3, 0.4)),
    "all": levels("all", (0.1, 0.15, 0.51)),
}


def advice(
    kinds: Mapping[str, Any] = KINDS,
    blocks: tuple[float, ...] = (3.0, 0.1, 0.2, 0.1),
    limit: float = 0.5,
    refuse: tuple[str, ...] = (),
    fixed: tuple[str, ...] = (),
    protection: tuple[int, int] = (1, 0),
) -> Advice:
    def check(changes: Mapping[str, Any]) -> None:
        IShrinkConfig(**changes)
        if any(changes[key] is None for key in refuse):
            raise ShapeError("it cannot be")

    return advise(
        kinds,
        layers(*blocks),
        limit,
        shape=SHAPE,
        protection=protection,
        can_cut=lambda kind: kind not in fixed,
        check=check,
    )


def test_the_furthest_level_is_in_front_of_the_first_that_is_too_far() -> None:
    assert [furthest_below(found, 0.5).removed_share for found in list(KINDS.values())[:3]] == [0.02, 0.12, 0.1]  # type: ignore[union-attr]
    assert furthest_below(KINDS["all"], 0.5) is None
    assert furthest_below(levels("mlp", (0.1, 0.0, 0.0)), 0.5) is None  # nothing went


def test_the_cheapest_kind_removes_most_parameters_below_the_threshold() -> None:
    found = advice()
    assert "mlp removes most: mlp 12.0% of the parameters at 20% sparsity (0.490 ± 0.010); layers" in found.text
    assert "all: no measured level" in found.text
    assert (
        "most sensitive layers, to protect (KL divergence when skipped): 0 (3.000), 2 (0.200), 1 (0.100)" in found.text
    )
    assert "zero-out repairs nothing" in found.text
    assert "\n" not in found.text
    assert found.changes["target"] == "params=-12%"
    assert found.changes["num_hidden_layers"] == 4
    assert found.changes["num_key_value_heads"] == 4
    assert found.changes["intermediate_size"] is None
    assert found.finer_levels == ()
    assert advice(limit=0.25).changes["target"] == "params=-5.6%"  # never more than was measured


def test_a_kind_that_cannot_be_had_is_named_and_passed_over() -> None:
    found = advice(refuse=("intermediate_size",))
    assert "mlp at that size has no shape that can be written (it cannot be); the command takes layers" in found.text
    assert found.changes["target"] == "params=-10%"
    assert found.changes["num_hidden_layers"] is None
    found = advice(fixed=("mlp",))
    assert "mlp" not in found.text
    assert found.changes["target"] == "params=-10%"


def test_layers_that_cost_too_much_alone_are_protected_where_layers_may_go() -> None:
    assert protection_needed(layers(3, 1, 0.2, 1), 0.5) == (2, 1)
    assert protection_needed(layers(3, 1, 2, 1), 0.5) == (4, 4)
    only = {"layers": KINDS["layers"]}
    found = advice(only, (3, 1, 0.2, 1)).changes
    assert (found["keep_first_layers"], found["keep_last_layers"]) == (2, 1)
    found = advice(only, (3, 1, 0.2, 0.1), protection=(2, 0)).changes
    assert "keep_first_layers" not in found
    assert "keep_last_layers" not in found
    assert "keep_first_layers" not in advice(blocks=(3, 1, 0.2, 1)).changes  # no layer goes


@pytest.mark.parametrize(
    "how", [{"limit": 0.01}, {"refuse": ("num_hidden_layers", "num_key_value_heads", "intermediate_size")}]
)
def test_where_nothing_follows_finer_levels_are_measured(how: dict[str, Any]) -> None:
    found = advice(**how)
    assert "measure finer levels" in found.text
    assert found.changes == {}
    assert found.finer_levels == (0, 2, 4, 6, 8, 10)


def test_the_command_line_of_either() -> None:
    config = IShrinkConfig(importance="taylor", calibration="a b.txt", seed=3, eval_samples=9)
    parser = Parser(prog="ishrink")
    add_verbs(parser)
    found = advice()
    words = shlex.split(advised_command(config, AnalysisOptions(), found.changes, (), "org/model"))
    assert words[1:6] == ["shrink", "--model", "org/model", "--output", "model-shrunk"]
    assert read_request(parser.parse_args(words[1:]))[1] == config.replace(**found.changes)
    options = AnalysisOptions(analysis_samples=3, analysis_text=("a.txt", "self"), max_divergence=0.2)
    words = shlex.split(advised_command(config, options, {}, (0, 2.5), "org/model", "--gguf-file", "f"))
    args = parser.parse_args(words[1:])
    assert (args.verb, args.output, args.gguf_file, args.levels) == ("analyze", "model-analysis", "f", "0,2.5")
    assert (args.analysis_samples, args.analysis_text, args.max_divergence) == (3, "a.txt,self", 0.2)
    assert read_request(args)[1] == config.replace(eval_samples=32)
