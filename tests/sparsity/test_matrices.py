"""Which matrices of a model can have zeros: every architecture's are found by its description."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from optimum_ishrink.architectures.model_class import bind_config, meta_model, parse_config, stored_state
from optimum_ishrink.errors import RequestError, ShapeError
from optimum_ishrink.report.sparsity import parse_pattern
from optimum_ishrink.sparsity.layers import zero_by_magnitude
from optimum_ishrink.sparsity.matrices import check_widths, find_matrices, parameters_of, stored_matrices
from tests.helpers.tiny import ALL_VARIANTS, tiny_config, tiny_model, tiny_raw_config


def of(model_type: str, variant: int = 0) -> Any:
    raw = tiny_raw_config(model_type, variant)
    _, binding = bind_config(raw)
    model = meta_model(parse_config(raw))
    return model, binding, *find_matrices(model, binding)


@pytest.mark.parametrize(("model_type", "variant"), ALL_VARIANTS)
def test_every_linear_layer_of_the_layers_is_found_or_left_out_with_a_reason(model_type: str, variant: int) -> None:
    model, binding, matrices, skipped = of(model_type, variant)
    names = {matrix.name for matrix in matrices}
    assert names
    for name, module in model.named_modules():
        parts = name.split(".")
        bound = binding.in_memory.get(f"{name}.weight")
        if not isinstance(module, (torch.nn.Linear, Conv1D)) or bound is None or bound.layer is None:
            assert f"{name}.weight" not in names, parts
            continue
        kind = ".".join("*" if part.isdigit() else part for part in parts[parts.index(str(bound.layer)) + 1 :])
        assert (f"{name}.weight" in names) != (kind in skipped), (name, skipped)
    assert not any("norm" in name or "embed" in name or "lm_head" in name for name in names)
    routers = {bound.parameter for bound in binding.tensors.values() if bound.counts("experts") and not bound.expert}
    assert not {name for name in names & routers if len(binding.in_memory[name].axes) == 2}
    # In the files, the same weights under the names of the files.
    stored = stored_matrices(binding, matrices)
    loaded = {name: tensor.numel() for name, tensor in model.named_parameters()}
    files = {name: tensor.numel() for name, tensor in stored_state(model).items()}
    assert sum(files[each.name] for each in stored) == sum(loaded[each.name] for each in matrices)
    assert len({each.name for each in stored}) == len(stored)
    assert names <= {*parameters_of(binding, {matrix.kind for matrix in matrices})}


@pytest.mark.parametrize(("model_type", "variant"), ALL_VARIANTS)
def test_rows_are_what_is_multiplied(model_type: str, variant: int) -> None:
    """Zeros that are set in the rows of the loaded matrices are in the rows of the stored ones."""
    raw = tiny_raw_config(model_type, variant)
    _, binding = bind_config(raw)
    model = tiny_model(tiny_config(model_type, variant))
    matrices, _ = find_matrices(model, binding)
    even = [matrix for matrix in matrices if matrix.columns(binding.sizes) % 4 == 0]
    weights = {matrix.name: model.get_parameter(matrix.name) for matrix in even}
    zero_by_magnitude(even, weights, parse_pattern("2:4"))
    state = stored_state(model)
    kinds = {matrix.kind for matrix in even}
    for matrix in stored_matrices(binding, even):
        assert matrix.kind in kinds
        is_zero = matrix.by_rows(state[matrix.name]) == 0
        assert (is_zero.unflatten(-1, (-1, 4)).sum(-1) == 2).all(), matrix


def test_experts_are_covered_and_routers_are_not() -> None:
    _, _, matrices, skipped = of("qwen2_moe")
    assert {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"} <= {matrix.kind for matrix in matrices}
    assert skipped["mlp.gate"] == "it is a router"
    assert skipped["mlp.shared_expert_gate"] == "it is a gate: it has 1 rows or columns"


def test_what_is_narrow_beside_the_hidden_size_is_a_gate() -> None:
    model, binding, matrices, _ = of("llama")
    assert "self_attn.k_proj" in {matrix.kind for matrix in matrices}
    _, skipped = find_matrices(model, binding, {**binding.sizes, "hidden": 1024})
    assert skipped["self_attn.k_proj"] == "it is a gate: it has 32 rows or columns"
    matrices, skipped = find_matrices(model, binding, {**binding.sizes, "hidden": 1023})
    assert "self_attn.k_proj" not in skipped


def test_a_width_that_cannot_hold_the_pattern() -> None:
    _, binding, matrices, _ = of("llama")
    check_widths(matrices, parse_pattern("2:4"), "2:4", binding.sizes)
    sizes = {**binding.sizes, "ffn": 22}
    with pytest.raises(ShapeError, match=r"mlp.down_proj have 22 weights; an intermediate_size of 20 or 24 would fit"):
        check_widths(matrices, parse_pattern("2:4"), "2:4", sizes)
    check_widths(matrices, parse_pattern("50%"), "50%", sizes)
    with pytest.raises(
        ShapeError, match=r"multiples of 8, and those of self_attn.o_proj have 36 weights; use a share"
    ):
        check_widths(matrices, parse_pattern("4:8"), "4:8", {**binding.sizes, "heads": 9, "head_dim": 4})


def test_a_model_without_linear_layers() -> None:
    with pytest.raises(RequestError, match="sparsity 2:4 needs linear layers, and the layers of this model have none"):
        check_widths((), parse_pattern("2:4"), "2:4", {})
