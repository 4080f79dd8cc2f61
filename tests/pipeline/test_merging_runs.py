"""Experts merged from the request to the result: similarity, plan, files, repair, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import NotFiniteError, RequestError, ShapeError
from optimum_ishrink.importance.expert_outputs import compare_experts
from optimum_ishrink.planning.nesting import is_nested
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.shape import resolve_shape
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.report.plan_tables import layer_rows, shape_rows
from tests.helpers.cutting import cut_to, load
from tests.helpers.tiny import VOCAB, save_tiny, tiny_config, tiny_model, tiny_raw_config

HOW: dict[str, Any] = {
    "calibration_samples": 8,
    "calibration_length": 16,
    "compensation": "none",
    "evaluate": False,
    "benchmark": False,
}
WINDOWS = torch.randint(3, VOCAB, (5, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model_type", ["qwen2_moe", "gpt_oss"])  # stored one by one, and in one tensor
def test_merged_experts_are_written_planned_and_repaired(model_type: str, text_file: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type))
    shrinker = IShrinker.from_pretrained(folder, dtype="float32", device="cpu")
    how = {**HOW, "num_experts": 2, "calibration": str(text_file)}
    plain = shrinker.plan(**how)
    repaired = shrinker.shrink(
        save_directory=tmp_path / "repaired", merge_experts=True, **{**how, "compensation": "ridge"}
    )
    plan = repaired.plan
    assert plan.units == plain.units and plain.expert_merges is None
    assert plan.expert_merges is not None
    for kept, merges in zip(plan.units["num_experts"], plan.expert_merges, strict=True):
        assert tuple(merge.experts[0] for merge in merges) == kept
        assert not kept or sorted(expert for merge in merges for expert in merge.experts) == [0, 1, 2, 3]
        assert all(sum(merge.shares) == pytest.approx(1) for merge in merges)
    # Dropping alone is exact, and merging is not.
    assert plain.inexact == ()
    assert plan.inexact == ("dropped experts are merged into retained ones, which are weighted means now",)
    assert Plan.from_json(plan.to_json()) == plan
    assert "expert_merges" not in plain.to_json()
    before = load_file(cut_to(folder, tmp_path / "plain", plain) / "model.safetensors")
    after = load_file(cut_to(folder, tmp_path / "merged", plan) / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".experts." in name for name in changed)
    load(tmp_path / "merged")
    found = load_file(tmp_path / "repaired" / "model.safetensors")
    refitted = {r.name.partition("[")[0] for r in repaired.report.compensation.repairs if r.ridge is not None}
    assert refitted and {name for name in found if not torch.equal(found[name], after[name])} == refitted
    load(tmp_path / "repaired")
    # The tables name what was merged into what.
    (row,) = [row for row in shape_rows(plan) if row[0] == "num_experts"]
    assert row[3] == "2 experts of each layer that has any (50.0%), merged into those that stay"
    layers = [row[3] for row in layer_rows(plan)]
    assert all("+" in cell for cell in layers if cell != "has none")
    assert ("has none" in layers) == (model_type == "qwen2_moe")


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "qwen2_moe"])
def test_similarity_is_of_mean_outputs_on_the_same_tokens(model_type: str) -> None:
    model, (_, binding) = tiny_model(tiny_config(model_type)), bind_config(tiny_raw_config(model_type))
    found = compare_experts(model, binding, WINDOWS, batch_size=2)
    similarity, frequency = found["expert_similarity"], found["expert_frequency"]
    seen: dict[int, list[tuple[Any, ...]]] = {}
    modules = {}
    for layer, block in enumerate(model.model.layers):
        for name, module in block.named_modules():
            if name.endswith(".experts"):
                modules[layer] = module
                module.register_forward_hook(lambda _, args, __, layer=layer: seen.setdefault(layer, []).append(args))
    with torch.no_grad():
        model(WINDOWS)
        calls = {layer: args[0] for layer, args in seen.items()}
        for layer, module in modules.items():
            hidden, chosen = calls[layer][0], calls[layer][1]
            ones = torch.ones(hidden.shape[0], 1)
            means = [module(hidden, torch.full_like(chosen[:, :1], e), ones).mean(dim=0) for e in range(4)]
            for a in range(4):
                assert frequency[layer, a] == (chosen == a).sum()
                for b in range(4):
                    distance = float((means[a] - means[b]).norm())
                    assert -float(similarity[layer, a, b]) == pytest.approx(distance, rel=1e-4, abs=1e-5)
    assert modules and similarity[list(modules)].unique().numel() > 4
    others = [layer for layer in range(binding.sizes["layers"]) if layer not in modules]
    assert not similarity[others].any() and not frequency[others].any()


def test_outputs_that_are_not_finite_are_refused() -> None:
    model, (_, binding) = tiny_model(tiny_config("mixtral")), bind_config(tiny_raw_config("mixtral"))
    with torch.no_grad():
        model.model.layers[2].mlp.experts.down_proj[1] = torch.inf
    with pytest.raises(NotFiniteError, match="experts to merge is not finite in layer 2"):
        compare_experts(model, binding, WINDOWS)


REFUSED = [
    ("llama", ShapeOptions(intermediate_size=12, merge_experts=True), "merge_experts is for mixtures of experts, and"),
    ("mixtral", ShapeOptions(num_hidden_layers=3, merge_experts=True), "this shape retains all 4; request fewer with"),
    (
        "mixtral",
        ShapeOptions(target="params=-9.4%", prune=["intermediate_size"], merge_experts=True),
        "retains all 4; request fewer with num_experts, or with a target prune=num_experts",
    ),
]


@pytest.mark.parametrize(("model_type", "request_", "message"), REFUSED)
def test_merging_needs_experts_that_are_dropped(model_type: str, request_: ShapeOptions, message: str) -> None:
    loose = request_.replace(keep_first_layers=0, keep_last_layers=0, intermediate_multiple=1)
    with pytest.raises(ShapeError, match=message) as error:
        resolve_shape(bind_config(tiny_raw_config(model_type))[1], loose)
    assert "\n" not in str(error.value)


def test_a_target_that_drops_experts_can_merge_them() -> None:
    request = ShapeOptions(target="params=-23%", prune=["num_experts"], merge_experts=True)
    assert resolve_shape(bind_config(tiny_raw_config("mixtral"))[1], request)["num_experts"] < 4


def test_merging_needs_a_criterion_that_reads_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError, match="reads none; it can be frequency or reap"):
        IShrinkConfig(num_experts=2, merge_experts=True, expert_importance="l2-norm")
    IShrinkConfig(num_experts=2, merge_experts=True, expert_importance="frequency")
    folder = save_tiny(tmp_path / "base", tiny_config("mixtral"))
    words = ["--num-experts", "3", "--merge-experts", "--expert-importance", "l2-norm"]
    assert main(["plan", "--model", str(folder), *words]) == 2
    assert (
        capsys.readouterr().err.strip().endswith("expert_importance='l2-norm' reads none; it can be frequency or reap")
    )


def test_models_with_merged_experts_are_no_parts_of_one_another(text_file: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("mixtral"))
    shrinker = IShrinker.from_pretrained(folder, dtype="float32", device="cpu")
    plan = shrinker.plan(num_experts=3, merge_experts=True, calibration=str(text_file), **HOW)
    alone = replace(plan, expert_merges=None)
    assert is_nested(alone, alone) and not is_nested(alone, plan) and not is_nested(plan, alone)
