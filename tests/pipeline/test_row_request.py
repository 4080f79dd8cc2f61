"""Whether a request may change the vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.pipeline.row_request import may_change_rows
from tests.helpers.smollm2 import BINDING


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ({"vocab_size": 32_768}, True),
        ({"vocab_size": 32_768, "num_hidden_layers": 28}, True),
        ({"vocab_size": 49_152}, False),
        ({"target": "params=-15%"}, True),
        ({"target": "params=-15%", "vocab_size": 49_152}, False),
        ({"target": "params=-15%", "prune": ["vocab_size"]}, True),
        ({"target": "params=-15%", "prune": ["num_hidden_layers"]}, False),
        ({"num_hidden_layers": 28}, False),
        ({}, False),
    ],
)
def test_rows_change_by_their_size_or_a_target(values: dict[str, Any], changes: bool) -> None:
    assert may_change_rows(BINDING, IShrinkConfig(**values)) is changes
    chosen = IShrinkConfig(**values, vocab_languages=["de"])
    if changes:
        assert may_change_rows(BINDING, chosen)
    else:
        with pytest.raises(ShapeError, match="vocab_languages says which tokens stay, and the vocabulary does not"):
            may_change_rows(BINDING, chosen)


def test_an_architecture_whose_rows_are_fixed() -> None:
    description = BINDING.description
    fixed = replace(description.dimensions["vocab_size"], fixed="its rows are shared")
    binding = replace(
        BINDING, description=replace(description, dimensions={**description.dimensions, "vocab_size": fixed})
    )
    assert not may_change_rows(binding, IShrinkConfig(target="params=-15%"))
