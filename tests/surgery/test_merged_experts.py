"""Experts merged into others: means by hand, alignment, and the cut that writes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.planning.expert_merging import merge_dropped
from optimum_ishrink.report.plan import ExpertMerge, Plan
from optimum_ishrink.surgery.expert_merge import expert_tensors, match_neurons
from tests.helpers.cutting import assert_exact, cut_to, exact_logits, load, masked_checkpoint, random_plan
from tests.helpers.tiny import save_tiny, tiny_config, tiny_raw_config

MERGES = (ExpertMerge((0, 1), (0.25, 0.75)), ExpertMerge((2,), (1.0,)), ExpertMerge((3,), (1.0,)))
LAYOUTS = ["mixtral", "gpt_oss", "granitemoe"]
"""One by one on disk; in one tensor, transposed, with biases and gate and up in turns; one after the other."""


def merged_plan(raw: dict[str, Any], shape: dict[str, int], merges: tuple[ExpertMerge, ...] = MERGES) -> Plan:
    """A plan that drops expert 1 of four, merged into expert 0."""
    plan, _, _ = random_plan(raw, shape, 0)
    kept = tuple(merge.experts[0] for merge in merges)
    units = {**plan.units, "num_experts": tuple(kept if row else () for row in plan.units["num_experts"])}
    if "intermediate_size" in units:
        rows = zip(plan.units["num_experts"], units["intermediate_size"], strict=True)
        width = plan.shape["intermediate_size"]
        units["intermediate_size"] = tuple(
            tuple(e * width + n for e in kept for n in range(plan.new_shape["intermediate_size"])) if row else neurons
            for row, neurons in rows
        )
    merged = tuple(merges if row else () for row in units["num_experts"])
    return replace(plan, units=units, expert_merges=merged)


def swap_neurons(tensors: dict[str, torch.Tensor], binding: Any, order: torch.Tensor) -> None:
    """Make expert 1 of every layer expert 0 with its neurons in another order."""
    for layer in range(binding.sizes["layers"]):
        for bound in expert_tensors(binding, layer):
            if bound.expert not in (None, 1):
                continue
            alone = bound.expert is not None
            of_first = tensors[bound.in_layer(layer, 0)] if alone else tensors[bound.name][0]
            new = of_first.clone()
            for dim, length in enumerate(new.shape):
                width = binding.sizes["ffn"]
                if length == width:
                    new = new.index_select(dim, order)
                elif length == 2 * width:  # in turns or one after the other
                    paired = binding.description.model_type == "gpt_oss"
                    index = (
                        torch.stack([2 * order, 2 * order + 1], 1) if paired else torch.stack([order, order + width])
                    )
                    new = new.index_select(dim, index.flatten())
            if alone:
                tensors[bound.name] = new
            else:
                tensors[bound.name][1] = new


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_merging_an_expert_with_itself_in_another_order_is_dropping_it(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type))
    raw = json.loads((folder / "config.json").read_text())
    _, binding = bind_config(raw)
    tensors = load_file(folder / "model.safetensors")
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    order = torch.randperm(binding.sizes["ffn"], generator=torch.Generator().manual_seed(0))
    swap_neurons(tensors, binding, order)
    assert any(not torch.equal(tensors[name], before[name]) for name in tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    plan = merged_plan(raw, {"num_experts": 3})
    merged = load_file(cut_to(folder, tmp_path / "merged", plan) / "model.safetensors")
    dropped = load_file(cut_to(folder, tmp_path / "dropped", replace(plan, expert_merges=None)) / "model.safetensors")
    assert merged.keys() == dropped.keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, dropped[name]), name


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_a_weighted_mean_equals_one_by_hand(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type))
    raw = json.loads((folder / "config.json").read_text())
    _, binding = bind_config(raw)
    tensors = load_file(folder / "model.safetensors")
    # Expert 1 is near expert 0, neuron by neuron: in place, so that the mean is that of the tensors as they are.
    generator = torch.Generator().manual_seed(1)
    swap_neurons(tensors, binding, torch.arange(binding.sizes["ffn"]))
    for layer in range(binding.sizes["layers"]):
        for bound in expert_tensors(binding, layer):
            if bound.expert in (None, 1):
                part = tensors[bound.name] if bound.expert is not None else tensors[bound.name][1]
                part += 0.05 * torch.randn(part.shape, generator=generator)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    cut = load_file(cut_to(folder, tmp_path / "cut", merged_plan(raw, {"num_experts": 3})) / "model.safetensors")
    checked = 0
    for layer in range(binding.sizes["layers"]):
        for bound in expert_tensors(binding, layer):
            if bound.expert is None:
                whole, found = tensors[bound.name], cut[bound.name]
                torch.testing.assert_close(found[0], 0.25 * whole[0] + 0.75 * whole[1])
                assert torch.equal(found[1:], whole[2:])
            elif bound.expert == 0:
                other = tensors[bound.in_layer(layer, 1)]
                torch.testing.assert_close(cut[bound.name], 0.25 * tensors[bound.name] + 0.75 * other)
                assert not torch.equal(cut[bound.name], tensors[bound.name])
            elif bound.expert > 1:
                assert torch.equal(cut[bound.in_layer(layer, bound.expert - 1)], tensors[bound.name])
            checked += 1
        routers = [name for name in cut if f".{layer}." in name and ("router" in name or "gate.weight" in name)]
        assert routers
        for name in routers:  # its rows stay those of the retained experts
            assert torch.equal(cut[name], tensors[name][[0, 2, 3]]), name
    assert checked


@pytest.mark.parametrize("model_type", [*LAYOUTS, "qwen2_moe"])  # shared experts, and a layer without any
def test_merged_and_narrower_equals_the_original_with_means(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type))
    raw = json.loads((folder / "config.json").read_text())
    _, binding = bind_config(raw)
    merges = (ExpertMerge((1, 3), (0.5, 0.5)), ExpertMerge((2, 0), (0.9, 0.1)))
    plan = merged_plan(raw, {"num_experts": 2, "num_hidden_layers": 3, "intermediate_size": 13}, merges)
    cut = cut_to(folder, tmp_path / "cut", plan)
    load(cut)
    masked = masked_checkpoint(folder, tmp_path / "masked", binding, plan)
    assert_exact(exact_logits(cut), exact_logits(masked, plan=plan))
    plain = replace(plan, expert_merges=None)
    assert (exact_logits(cut) - exact_logits(cut_to(folder, tmp_path / "plain", plain))).abs().max() > 1e-4


def test_router_rows_are_no_part_of_experts() -> None:
    _, binding = bind_config(tiny_raw_config("gpt_oss"))
    names = {bound.name.rpartition(".")[2] for bound in expert_tensors(binding, 1)}
    assert names == {"gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"}


def test_neurons_are_matched_the_closest_first() -> None:
    generator = torch.Generator().manual_seed(0)
    target, order = torch.randn(40, 9, generator=generator), torch.randperm(40, generator=generator)
    assert torch.equal(match_neurons(target, target), torch.arange(40))
    noise = 0.01 * torch.randn(40, 9, generator=generator)
    found = match_neurons(target, 3 * (target + noise)[order])
    assert torch.equal(order[found], torch.arange(40))
    # Greedy by hand: the closest pair of all that are left, again and again.
    other = torch.randn(40, 9, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(target[:, None], other[None], dim=-1)
    expected = torch.full((40,), -1)
    for place in cosine.flatten().argsort(descending=True).tolist():
        row, column = divmod(place, 40)
        if expected[row] == -1 and column not in expected:
            expected[row] = column
    assert torch.equal(match_neurons(target, other), expected)
    # All alike: any order is right, and each is one.
    assert sorted(match_neurons(torch.zeros(5, 2), torch.zeros(5, 2)).tolist()) == list(range(5))
    circle = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert sorted(match_neurons(circle, circle.flip(0)).tolist()) == [0, 1, 2]


def test_dropped_experts_go_to_the_retained_one_that_is_most_like_them() -> None:
    similarity = -torch.tensor(
        [[0.0, 9.0, 2.0, 5.0], [9.0, 0.0, 3.0, 1.0], [2.0, 3.0, 0.0, 1.0], [5.0, 1.0, 1.0, 0.0]]
    )
    frequency = torch.tensor([6.0, 5.0, 2.0, 0.0])
    assert merge_dropped((0, 1), similarity, frequency) == (
        ExpertMerge((0, 2), (0.75, 0.25)),
        ExpertMerge((1, 3), (1.0, 0.0)),
    )
    assert merge_dropped((0,), similarity, frequency)[0].experts == (0, 1, 2, 3)
    # Where the router picks none of a group, nothing is known of them, and the retained one stays.
    assert merge_dropped((2, 3), similarity, torch.zeros(4))[0] == ExpertMerge((2, 0), (1.0, 0.0))
    assert merge_dropped((), similarity, frequency) == ()
