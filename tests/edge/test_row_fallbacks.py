from __future__ import annotations

import pytest

from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.edge.gguf_quantizations import TENSOR_TYPES, parse_gguf_quantization
from optimum_ishrink.edge.row_fallbacks import check_rows, fallback_cost, fallback_rows, matrices, runtime_table
from optimum_ishrink.errors import ShapeError
from tests.helpers.tiny import tiny_config


def _binding(**changes):
    return bind_config(tiny_config("llama", **changes).to_dict())[1]


def test_matrices_are_all_but_norms() -> None:
    binding = _binding()
    found = matrices(binding)
    norms = 2 * 4 * 32 + 32
    assert sum(entry.weights for entry in found) == binding.num_parameters() - norms
    down = next(entry for entry in found if "down_proj" in entry.name)
    assert (down.row, down.counted_by, down.count) == (24, "intermediate_size", 4)
    smaller = matrices(binding, {"num_hidden_layers": 3, "intermediate_size": 16})
    assert next((entry.row, entry.count) for entry in smaller if "down_proj" in entry.name) == (16, 3)


def test_transposed_weights_have_their_rows_on_the_other_axis() -> None:
    binding = bind_config(tiny_config("gpt2", n_inner=96).to_dict())[1]
    rows = {entry.name.split(".")[-2]: entry.row for entry in matrices(binding) if ".mlp." in entry.name}
    assert rows == {"c_fc": 32, "c_proj": 96}
    assert not any("wpe" in entry.name for entry in matrices(binding))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 88}, "the nearest intermediate_size that fits is 64 or 96; shrink to that"),
        (
            {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8, "hidden_size": 160},
            "heads times head_dim would have to be 32 or 64",
        ),
        ({"hidden_size": 40}, "pruning does not change this width"),
    ],
)
def test_a_width_that_a_quantisation_does_not_allow(changes, message) -> None:
    values = {"hidden_size": 64, "intermediate_size": 96, **changes}
    binding = _binding(**values)
    check_rows(binding, parse_gguf_quantization("f16"))
    for name in ("q8_0", "q4_0", "q4_k_m"):
        with pytest.raises(ShapeError, match=message):
            check_rows(binding, parse_gguf_quantization(name))


def test_k_quants_may_fall_back_on_plain_ones() -> None:
    check_rows(_binding(hidden_size=64, intermediate_size=96), parse_gguf_quantization("q4_k_m"))


def test_the_cost_of_falling_back_is_arithmetic() -> None:
    binding = _binding(hidden_size=256, intermediate_size=288, head_dim=32, num_attention_heads=8)
    (row,) = fallback_rows(binding, {}, TENSOR_TYPES["q4_k"])
    weights = 4 * 288 * 256
    more = weights * 22 // 32 - weights * 144 // 256
    assert row[1:] == ("288", "q4_k", "q5_0", f"{more:,} (+22%)", "256 or 512")
    assert fallback_cost(binding, {}, TENSOR_TYPES["q4_k"])[1] == more
    rows, lines = runtime_table(binding, {"intermediate_size": 256})
    assert rows == []
    assert lines[0] == "q4_k: every row is a multiple of 256, nothing falls back"
