"""Scores of experts: what the router sends to each, and what the expert makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.importance.batches import Batches
from optimum_ishrink.importance.changes import ChangeWatcher
from optimum_ishrink.importance.criterion import EXPERT_CRITERIA, UNIT_CRITERIA, Criterion, Routing
from optimum_ishrink.importance.engine import backward, score_model
from optimum_ishrink.importance.units import Units
from optimum_ishrink.modeling.experts import fused_experts
from tests.helpers.tiny import VOCAB, tiny_config, tiny_model, tiny_raw_config

WINDOWS = torch.randint(3, VOCAB, (6, 12), generator=torch.Generator().manual_seed(0))


def swiglu(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    gate, up = (experts.gate_up_proj[expert] @ hidden).chunk(2)
    return experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)


def clamped(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    both = hidden @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
    gate, up = both[::2].clamp(max=experts.limit), both[1::2].clamp(-experts.limit, experts.limit)
    inner = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
    return inner @ experts.down_proj[expert] + experts.down_proj_bias[expert]


def by_hand(model: Any, windows: torch.Tensor, output: Any, mask: torch.Tensor | None = None) -> Any:
    """Gate weights and norms of every expert in every layer, in a loop over tokens; lists of pairs."""
    seen: list[tuple[Any, ...]] = []
    modules = [layer.get_submodule(_name(layer)) for layer in model.model.layers if _name(layer)]
    handles = [module.register_forward_hook(lambda *call: seen.append(call[:2])) for module in modules]
    with torch.no_grad():
        model(windows, attention_mask=mask)
    for handle in handles:
        handle.remove()
    text = torch.ones_like(windows).flatten() if mask is None else mask.flatten()
    found = []
    for experts, (hidden, chosen, weights) in seen:
        pairs: list[list[tuple[float, float]]] = [[] for _ in range(len(experts.down_proj))]
        for token in range(len(text)):
            for expert, gate in zip(chosen[token].tolist(), weights[token].tolist(), strict=True):
                if text[token]:
                    with torch.no_grad():
                        pairs[expert].append((gate, float(output(experts, expert, hidden[token]).norm())))
        found.append(pairs)
    return found


def _name(layer: Any) -> str | None:
    names = (name for name, _ in layer.named_modules() if name.endswith(".experts"))
    return next(names, None)


@pytest.mark.parametrize(
    ("model_type", "output"),
    [("mixtral", swiglu), ("olmoe", swiglu), ("glm4_moe", swiglu), ("granitemoe", swiglu), ("gpt_oss", clamped)],
)
def test_reap_and_frequency_equal_a_direct_computation(model_type: str, output: Any) -> None:
    config = tiny_config(model_type)
    model, (_, binding) = tiny_model(config), bind_config(tiny_raw_config(model_type))
    mask = torch.ones_like(WINDOWS)
    mask[-1, 5:] = 0  # padding counts nowhere
    pairs = by_hand(model, WINDOWS, output, mask)
    dense = binding.sizes["layers"] - len(pairs)
    tokens = int(mask.sum())
    for name in ("reap", "frequency"):
        how = {"expert_criterion": EXPERT_CRITERIA[name], "attention_mask": mask, "batch_size": 2}
        scores = score_model(model, binding, WINDOWS, None, None, ("num_experts",), **how)["num_experts"]
        assert not scores[:dense].any()  # a layer without experts has no scores
        for layer, experts in enumerate(pairs, start=dense):
            for expert, routed in enumerate(experts):
                mean = sum(gate * norm for gate, norm in routed) / max(len(routed), 1)
                expected = mean if name == "reap" else len(routed) / tokens
                assert scores[layer, expert].item() == pytest.approx(expected, rel=1e-4), (name, layer, expert)
        assert scores[dense:].flatten().unique().numel() > 4


def test_an_expert_that_no_token_is_routed_to_scores_nothing() -> None:
    ones = torch.ones(1, 2)
    routing = Routing(torch.tensor([[4.0, 0.0]]), ones, ones, torch.tensor([[2.0, 0.0]]), tokens=8)
    assert EXPERT_CRITERIA["reap"].function(routing).tolist() == [[0.5, 0.0]]
    assert EXPERT_CRITERIA["frequency"].function(routing).tolist() == [[0.5, 0.0]]


MIXTURES = ["mixtral", "gpt_oss", "glm4_moe"]  # as usual; transposed, with biases; with experts that all tokens read


@pytest.mark.parametrize("model_type", MIXTURES)
def test_changes_of_neurons_in_experts_are_those_that_their_weights_see(model_type: str) -> None:
    model, (_, binding) = tiny_model(tiny_config(model_type)), bind_config(tiny_raw_config(model_type))
    plain = Criterion("change", "changes", "", "", lambda change: change)
    watcher = ChangeWatcher(model, plain, Units(binding, ("intermediate_size",)))
    (batch,) = Batches(WINDOWS, None, len(WINDOWS), model.device)
    with watcher:
        for fused in fused_experts(model, binding).values():
            fused.weight.requires_grad_(True)
        watcher.begin(batch)
        backward(model, batch, seed=0)
        sums = watcher.sums["intermediate_size"]
    width = binding.sizes["ffn"]
    for layer, fused in fused_experts(model, binding).items():
        product = (fused.weight * fused.weight.grad).sum(-1 if fused.transposed else -2)
        routed = sums[layer, : product.numel()].view(-1, width)
        torch.testing.assert_close(routed, product, atol=1e-4, rtol=1e-3)
        assert routed.abs().max() > 1e-3
    if model_type == "glm4_moe":
        assert sums[1, -2 * width :].abs().min() > 0  # two shared experts


@pytest.mark.parametrize("model_type", MIXTURES)
def test_the_activation_norm_is_what_the_layer_loses_without_a_neuron(model_type: str) -> None:
    model, (_, binding) = tiny_model(tiny_config(model_type)), bind_config(tiny_raw_config(model_type))
    how = {"attention_mask": None, "batch_size": 2}
    scores = score_model(
        model, binding, WINDOWS, UNIT_CRITERIA["activation-norm"], None, ("intermediate_size",), **how
    )
    fused, width = fused_experts(model, binding)[3], binding.sizes["ffn"]
    outputs: list[torch.Tensor] = []
    handle = fused.module.register_forward_hook(lambda *call: outputs.append(call[2]))
    expert, neuron = 1, 5
    with torch.no_grad():
        model(WINDOWS)
        fused.matrix(expert)[:, neuron] = 0
        model(WINDOWS)
    handle.remove()
    lost = (outputs[0] - outputs[1]).square().sum() / WINDOWS.numel()
    assert scores["intermediate_size"][3, expert * width + neuron].item() == pytest.approx(lost.item(), rel=1e-3)
    assert lost > 0


def test_experts_and_their_neurons_can_be_scored_together() -> None:
    model, (_, binding) = tiny_model(tiny_config("mixtral")), bind_config(tiny_raw_config("mixtral"))
    neurons, reap = UNIT_CRITERIA["activation-norm"], EXPERT_CRITERIA["reap"]
    keys = ("intermediate_size", "num_experts")
    both = score_model(model, binding, WINDOWS, neurons, None, keys, expert_criterion=reap)
    alone = score_model(model, binding, WINDOWS, neurons, None, keys[:1])
    torch.testing.assert_close(both["intermediate_size"], alone["intermediate_size"])
    alone = score_model(model, binding, WINDOWS, None, None, keys[1:], expert_criterion=reap)
    torch.testing.assert_close(both["num_experts"], alone["num_experts"])
