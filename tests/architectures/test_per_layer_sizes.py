"""Sizes that differ from layer to layer: a watch on which classes of transformers read them.

Every config of transformers takes `per_layer_config`. As long as no class builds layers of different widths from it,
a plan gives every layer the same ones. When one of these tests fails after an upgrade, a class has begun to.
"""

from __future__ import annotations

import pytest

from optimum_ishrink.architectures.description import describe
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.drafting.tiny_class import build
from optimum_ishrink.errors import ArchitectureError, SourceError
from tests.helpers.tiny import VARIANTS, tiny_raw_config

READ: set[tuple[str, str]] = set()
"""Family and config key whose value for one layer changes that layer's tensors: none in transformers 5.24."""


def test_no_class_reads_a_size_for_one_layer_alone() -> None:
    tried, read = 0, set()
    for model_type in VARIANTS:
        values = tiny_raw_config(model_type)
        del values["model_type"]
        base = build(values, model_type).stored
        for dimension in ("intermediate_size", "num_key_value_heads"):
            key = next(iter(describe(model_type).dimensions[dimension].writes), None)
            if key is None or not isinstance(values.get(key), int):
                continue
            tried += 1
            own = {**(values.get("per_layer_config") or {}), 1: {key: values[key] // 2}}
            try:
                found = build({**values, "per_layer_config": own}, model_type).stored
            except SourceError:
                continue  # transformers refuses: the class would read one value for all layers
            if found != base:
                read.add((model_type, key))
    assert tried > 50
    assert read == READ


@pytest.mark.parametrize("key", ["intermediate_size", "num_key_value_heads"])
def test_a_model_with_sizes_of_single_layers_is_refused(key: str) -> None:
    raw = tiny_raw_config("llama", per_layer_config={"1": {key: 2}})
    with pytest.raises(ArchitectureError, match=f"reads one size for all layers: '{key}' is a per-layer attribute"):
        bind_config(raw)
