"""Targets: how they are written, and the shapes that meet them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_ishrink.errors import ShapeError
from optimum_ishrink.planning.memory import Memory
from optimum_ishrink.planning.multiples import default_multiple
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.row_choices import RowChoices
from optimum_ishrink.planning.shape import resolve_shape
from optimum_ishrink.planning.solving import candidates, damage, solve
from optimum_ishrink.planning.target import parse_target
from tests.helpers.smollm2 import BINDING


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("params=-15%", 850), ("params = - 12.5 %", 875), ("params=0.5K", 500), ("params=900", 900), ("PARAMS=1k", None)],
)
def test_targets_are_parsed(text: str, wanted: int | None) -> None:
    if wanted is None:
        with pytest.raises(ShapeError):
            parse_target(text, 1000)
    else:
        assert parse_target(text, 1000).amount == wanted


@pytest.mark.parametrize("text", ["-15%", "params=15%", "size=-15%", "params=", "params=-15", "", "params=1.2.3M"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ShapeError, match="not of the form"):
        parse_target(text, 1000)


@pytest.mark.parametrize("text", ["params=2K", "params=-100%", "params=0", "params=-0%"])
def test_targets_that_are_not_smaller_are_refused(text: str) -> None:
    with pytest.raises(ShapeError, match="the model has 1,000"):
        parse_target(text, 1000)


@pytest.mark.parametrize(("width", "multiple"), [(14336, 256), (8192, 256), (4864, 128), (1536, 32), (64, 2), (24, 1)])
def test_the_default_multiple_grows_with_the_width(width: int, multiple: int) -> None:
    assert default_multiple(width) == multiple


@settings(max_examples=20, deadline=None)
@given(percent=st.integers(300, 6000).map(lambda hundredths: hundredths / 100), multiple=st.sampled_from([16, 32, 64]))
def test_a_target_is_met_within_half_a_point_or_refused_with_the_nearest_shapes(percent: float, multiple: int) -> None:
    binding = BINDING
    total = binding.num_parameters()
    target = parse_target(f"params=-{percent:.2f}%", total)
    try:
        shape = solve(binding, target, {}, multiple, 6)
    except ShapeError as error:
        assert str(error).count("parameters, -") == 2
    else:
        assert abs(1 - binding.num_parameters(shape) / total - percent / 100) <= 0.00501
        assert shape["intermediate_size"] % multiple == 0
        assert shape["num_hidden_layers"] >= 6
        assert binding.refusal(shape) is None


TOTAL = BINDING.shape["vocab_size"]


def zipfian(tokens: int = TOTAL, least: int = 1_100, multiple: int = 64) -> RowChoices:
    """Costs that grow as those of words do: the last tenth of the tokens is nearly free."""
    return RowChoices(TOTAL, tokens, multiple, [0.1 * (i / tokens) ** 3 for i in range(tokens - least + 1)])


def test_a_target_is_met_by_rows_alone() -> None:
    options = ShapeOptions(target="params=-10%", prune=["vocab_size"])
    shape = resolve_shape(BINDING, options, zipfian())
    assert {key for key in shape if shape[key] != BINDING.shape[key]} == {"vocab_size"}
    assert shape["vocab_size"] % 64 == 0
    assert abs(0.9 - BINDING.num_parameters(shape) / BINDING.num_parameters()) < 64 * 576 / BINDING.num_parameters()


def test_rows_and_neurons_go_together() -> None:
    shape = resolve_shape(BINDING, ShapeOptions(target="params=-15%"), zipfian())
    assert {key for key in shape if shape[key] != BINDING.shape[key]} == {"vocab_size", "intermediate_size"}
    assert abs(0.85 - BINDING.num_parameters(shape) / BINDING.num_parameters()) <= 0.00501
    alone = resolve_shape(BINDING, ShapeOptions(target="params=-15%"))
    assert damage(shape, BINDING.shape, zipfian()) < damage(alone, BINDING.shape)


def test_rows_that_cost_too_much_stay() -> None:
    dear = RowChoices(TOTAL, TOTAL, 64, [1.0 * i for i in range(TOTAL - 1_099)])
    assert resolve_shape(BINDING, ShapeOptions(target="params=-15%"), dear)["vocab_size"] == TOTAL


def test_rows_without_a_token_go_first() -> None:
    shape = resolve_shape(BINDING, ShapeOptions(target="params=-15%"), zipfian(tokens=TOTAL - 8_000))
    assert shape["vocab_size"] <= TOTAL - 8_000 + 63


def test_a_given_size_is_left_and_checked() -> None:
    options = ShapeOptions(target="params=-15%", vocab_size=40_960)
    assert resolve_shape(BINDING, options, zipfian())["vocab_size"] == 40_960
    with pytest.raises(ShapeError, match="vocab_size=40961 is not a multiple of 64"):
        resolve_shape(BINDING, ShapeOptions(vocab_size=40_961), zipfian())
    assert resolve_shape(BINDING, ShapeOptions(vocab_size=40_961), zipfian(multiple=1))["vocab_size"] == 40_961


def test_a_target_that_rows_cannot_meet_names_the_nearest() -> None:
    options = ShapeOptions(target="params=-40%", prune=["vocab_size"])
    with pytest.raises(ShapeError, match=r"nearest: .*vocab_size=1152 \([\d,]+ parameters, -20\.5\d%\)"):
        resolve_shape(BINDING, options, zipfian())
    coarse = ShapeOptions(target="params=-10%", prune=["vocab_size"])
    with pytest.raises(ShapeError, match=r"vocab_size=(16384|32768) .*; .*vocab_size=(16384|32768) "):
        resolve_shape(BINDING, coarse, zipfian(multiple=16_384))


def test_where_nothing_can_become_smaller_the_message_says_so() -> None:
    options = ShapeOptions(target="params=-10%", prune=["vocab_size"])
    with pytest.raises(ShapeError, match="nearest: none, for what may change cannot become smaller$"):
        resolve_shape(BINDING, options, zipfian(multiple=100_000))


@settings(max_examples=20)
@given(percent=st.integers(100, 4000).map(lambda hundredths: hundredths / 100), multiple=st.sampled_from([1, 64, 512]))
def test_every_candidate_has_the_parameters_that_it_says(percent: float, multiple: int) -> None:
    rows = zipfian(multiple=multiple)
    wanted = parse_target(f"params=-{percent}%", BINDING.num_parameters())
    fixed = {"num_hidden_layers": 30}
    for shape, count in candidates(BINDING, fixed, 256, 6, rows, wanted):
        assert count == BINDING.num_parameters(shape)
        rows.check(shape["vocab_size"])


def test_a_limit_on_bytes_is_one_on_parameters_and_is_not_exceeded() -> None:
    total = BINDING.num_parameters()
    target = parse_target(f"bytes={total * 2 * 0.85 / 1e3:.3f}kB", total)
    assert target.at_most and target.amount == pytest.approx(0.85 * total, rel=1e-3)
    assert parse_target("bytes=-15%", total, Memory(4, 1)).amount == int(0.85 * total)
    shape = solve(BINDING, target, {}, 1, 0)
    assert 0.84 * total < BINDING.num_parameters(shape) <= target.amount


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bytes=1GB", "nothing has to be removed"),
        ("memory=2kB", "no less than the model's 2,000 bytes, 2,000 of weights and 0 of the KV cache of 2,048 tokens"),
        ("decode=+20%", "limits decode, which has to be measured: pass --profile FILE, which `ishrink profile"),
        ("TTFT=-20%", "or let `ishrink search --runtime torch` measure and meet it"),
        ("params=-10%,decode=+5%", "has 2 limits"),
        ("bytes=1kB,decode=+20%", "has 2 limits, and shrink meets one: `ishrink search --runtime torch` meets them"),
        ("ttft=5", "is not of the form ttft=-20%"),
    ],
)
def test_what_has_to_be_measured_or_is_met_already_is_refused(text: str, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        parse_target(text, 1000)
