"""Targets: how they are written, and the shapes that meet them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_ishrink.errors import ShapeError
from optimum_ishrink.planning.target import default_multiple, parse_target, solve
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
        assert parse_target(text, 1000).num_parameters == wanted


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


@settings(max_examples=40, deadline=None)
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
