"""Dropped experts are left out of account only where it is known which tensor the router is."""

from __future__ import annotations

import pytest
import torch

from optimum_ishrink.errors import ArchitectureError
from optimum_ishrink.surgery.zeroing import unrouted
from tests.helpers.cutting import logits, random_plan
from tests.helpers.tiny import tiny_config, tiny_model, tiny_raw_config


def test_no_token_is_routed_to_an_expert_that_is_dropped() -> None:
    model = tiny_model(tiny_config("qwen3_moe"))
    plan, _, _ = random_plan(tiny_raw_config("qwen3_moe"), {"num_experts": 3}, seed=0)
    before = logits(model)
    with unrouted(model, plan):
        without = logits(model)
        with torch.no_grad():
            for layer, kept in zip(plan.layers, plan.units["num_experts"], strict=True):
                if kept:
                    (gone,) = {*range(4)} - {*kept}
                    model.model.layers[layer].mlp.experts.down_proj[gone] += 5
        assert torch.equal(logits(model), without)
    assert not torch.equal(before, without)


def test_a_router_that_cannot_be_told_is_refused() -> None:
    model = tiny_model(tiny_config("qwen3_moe"))
    plan, _, _ = random_plan(tiny_raw_config("qwen3_moe"), {"num_experts": 3}, seed=0)
    model.model.layers[0].mlp.other = torch.nn.Linear(8, 4, bias=False)
    refused = pytest.raises(ArchitectureError, match="layer 0 has 2 matrices with a row for each of 4 experts")
    with refused, unrouted(model, plan):
        logits(model)


def test_a_router_that_is_not_a_linear_layer_is_refused() -> None:
    plan, _, _ = random_plan(tiny_raw_config("qwen3_moe"), {"num_experts": 3}, seed=0)
    refused = pytest.raises(ArchitectureError, match="3 routers are not computed as linear layers")
    with refused, unrouted(tiny_model(tiny_config("qwen3_moe")), plan):
        pass
