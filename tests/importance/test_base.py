"""The part of a model below its head."""

from __future__ import annotations

from optimum_ishrink.modeling.base import base_of
from tests.helpers.tiny import tiny_config, tiny_model


def test_the_part_below_the_head() -> None:
    model = tiny_model(tiny_config("llama"))
    assert base_of(model) is model.model is model.base_model


def test_a_class_that_calls_the_decoder_within() -> None:
    model = tiny_model(tiny_config("opt"))
    assert base_of(model) is model.model.decoder


def test_a_class_whose_prefix_is_not_its_attribute() -> None:
    model = tiny_model(tiny_config("llama4_text"))
    assert model.base_model is model
    assert base_of(model) is model.model
