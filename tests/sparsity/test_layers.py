"""Setting weights to zero layer by layer, against the same done by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.errors import DataError, NotFiniteError, RequestError
from optimum_ishrink.modeling.error_carry import error_carry
from optimum_ishrink.report.sparsity import parse_pattern
from optimum_ishrink.sparsity.choosing import choose_zeros, wanda_scores
from optimum_ishrink.sparsity.closed_form import sparse_weight
from optimum_ishrink.sparsity.layers import zero_by_magnitude, zero_by_text
from optimum_ishrink.sparsity.matrices import find_matrices
from tests.helpers.tiny import graded, tiny_config, tiny_model, tiny_raw_config

PATTERN = parse_pattern("2:4")


def windows(count: int = 12, length: int = 12) -> torch.Tensor:
    return torch.randint(3, 300, (count, length), generator=torch.Generator().manual_seed(5))


def zero(model: Any, model_type: str, criterion: str, variant: int = 0, **how: Any) -> dict[str, float]:
    _, binding = bind_config(tiny_raw_config(model_type, variant))
    matrices, _ = find_matrices(model, binding)
    matrices = tuple(matrix for matrix in matrices if matrix.columns(binding.sizes) % 4 == 0)
    weights = {matrix.name: model.get_parameter(matrix.name) for matrix in matrices}
    if criterion == "magnitude":
        zero_by_magnitude(matrices, weights, PATTERN)
        return {}
    return zero_by_text(model, binding, matrices, weights, PATTERN, criterion, how.pop("text", windows()), **how)


def inputs_of(model: Any, module: str, text: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(module).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=text)
    handle.remove()
    return seen[0].flatten(0, 1)


@pytest.mark.parametrize("criterion", ["sparsegpt", "wanda"])
def test_each_matrix_is_changed_on_what_the_sparse_ones_before_it_give(criterion: str) -> None:
    model = tiny_model(tiny_config("llama"))
    by_hand = copy.deepcopy(model)
    zero(model, "llama", criterion, batch_size=5)
    order = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"]]
    order += [["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]
    for layer in range(4):
        for names in order:
            read = inputs_of(by_hand, f"model.layers.{layer}.{names[0]}", windows())
            for name in names:
                weight = by_hand.get_parameter(f"model.layers.{layer}.{name}.weight")
                if criterion == "wanda":
                    scores = wanda_scores(weight.detach(), read.square().sum(dim=0))
                    new = weight.detach().masked_fill(choose_zeros(scores, PATTERN, across_rows=False), 0)
                else:
                    new, _ = sparse_weight(weight.detach(), error_carry(read.T @ read), PATTERN)
                with torch.no_grad():
                    weight.copy_(new)
    for (name, found), (_, expected) in zip(model.named_parameters(), by_hand.named_parameters(), strict=True):
        assert torch.equal(found == 0, expected == 0), name
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


ONE_BY_ONE = [graded("llama", 0, fast=True), graded("gpt2", 0, fast=True), graded("phi3", 0, fast=True)]
ONE_BY_ONE += [graded("gpt_oss", 0, fast=True), graded("mixtral", 0, fast=True), graded("granitemoe", 0, fast=True)]
ONE_BY_ONE += [graded("qwen2_moe", 0, fast=True), graded("gemma3_text", 0, fast=True)]
ONE_BY_ONE += [
    graded("nemotron_h", 0, fast=False),
    graded("lfm2", 0, fast=False),
    graded("deepseek_v3", 0, fast=False),
]


@pytest.mark.parametrize(("model_type", "variant"), ONE_BY_ONE)
def test_the_closed_form_changes_the_logits_least(model_type: str, variant: int) -> None:
    base = tiny_model(tiny_config(model_type, variant))
    text = windows(32, 16)
    with torch.no_grad():
        wanted = base(input_ids=text).logits.log_softmax(-1)
    divergences = {}
    for criterion in ("sparsegpt", "wanda", "magnitude"):
        model = copy.deepcopy(base)
        errors = zero(model, model_type, criterion, variant, text=text)
        assert bool(errors) == (criterion == "sparsegpt")
        assert all(0 < error < 1 for error in errors.values())
        with torch.no_grad():
            found = model(input_ids=text).logits.log_softmax(-1)
        divergences[criterion] = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert divergences["sparsegpt"] < divergences["magnitude"]


def test_each_expert_is_changed_on_its_own_tokens() -> None:
    model = tiny_model(tiny_config("mixtral"))
    base = copy.deepcopy(model)
    zero(model, "mixtral", "wanda")
    name = "model.layers.0.mlp.experts"
    router, experts = "model.layers.0.mlp.gate", base.get_submodule(name)
    # Layer 0's attention is sparse before its experts are read.
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
        parameter = f"model.layers.0.self_attn.{part}.weight"
        with torch.no_grad():
            base.get_parameter(parameter).copy_(model.get_parameter(parameter))
    seen: list[Any] = []
    handle = experts.register_forward_pre_hook(
        lambda _, inputs, named: seen.append((*inputs, *named.values())), with_kwargs=True
    )
    with torch.no_grad():
        base(input_ids=windows())
    handle.remove()
    hidden, chosen, _ = seen[0]
    hidden = hidden.reshape(-1, hidden.shape[-1])
    for expert in range(4):
        read = hidden[(chosen == expert).any(-1)]
        weight = experts.gate_up_proj.detach()[expert]
        expected = choose_zeros(wanda_scores(weight, read.square().sum(dim=0)), PATTERN, across_rows=False)
        assert torch.equal(model.get_submodule(name).gate_up_proj.detach()[expert] == 0, expected), (expert, router)


def test_an_expert_that_reads_no_token() -> None:
    model = tiny_model(tiny_config("mixtral"))
    with pytest.raises(DataError, match=r"expert \d of model.layers.0.mlp.experts.gate_up_proj reads no token"):
        zero(model, "mixtral", "sparsegpt", text=windows(1, 1))


def test_experts_that_cannot_be_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimum_ishrink.modeling.experts._PRODUCTS", ())
    with pytest.raises(RequestError, match="not run in matrix products of one expert each.*--sparsity-criterion magn"):
        zero(tiny_model(tiny_config("mixtral")), "mixtral", "wanda")


def test_inputs_that_are_not_finite() -> None:
    model = tiny_model(tiny_config("llama"))
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.q_proj.weight").fill_(torch.inf)
        model.get_parameter("model.layers.1.self_attn.v_proj.weight").fill_(torch.inf)
    with pytest.raises(NotFiniteError, match=r"what model.layers.1.self_attn.o_proj.weight reads on the calibration"):
        zero(model, "llama", "wanda")


def test_experts_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = (tiny_model(tiny_config("mixtral")) for _ in range(2))
    zero(whole, "mixtral", "sparsegpt", text=windows(24))
    monkeypatch.setattr("optimum_ishrink.sparsity.inputs.MOST_BYTES", 3 * 4 * 32 * 32)
    zero(parts, "mixtral", "sparsegpt", text=windows(24))
    for (name, expected), (_, found) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        assert torch.equal(found, expected), name
