"""Scores of experts: what the router sends to each, and what the expert makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.importance.criterion import EXPERT_CRITERIA, Routing
from optimum_ishrink.importance.engine import score_model
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
