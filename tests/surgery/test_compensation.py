"""Compensation: projections are re-fit by ridge regression after the cut."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimum_ishrink import IShrinker
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.checkpoint.tensors import read_index, read_tensor
from optimum_ishrink.errors import DataError, RequestError
from optimum_ishrink.evaluation.text_statistics import kl_divergence
from optimum_ishrink.modeling.layerwise import enter_layers
from optimum_ishrink.report.compensation import CompensationRecord, ProjectionRepair
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.report.run import Run
from optimum_ishrink.surgery import least_squares
from optimum_ishrink.surgery.compensation import compensate, needs_cut_model
from optimum_ishrink.surgery.options import CompensationOptions
from optimum_ishrink.surgery.stage import check_compensation
from tests.helpers.cutting import cut_to, load, random_plan
from tests.helpers.tiny import LAYOUT_CASES, VOCAB, save_tiny, supported_shape, tiny_config

WINDOWS = torch.randint(3, VOCAB, (24, 16), generator=torch.Generator().manual_seed(0))


def cut_pair(folder: Path, shape: dict[str, int], seed: int = 3) -> tuple[Any, Any, Any, Plan]:
    plan, _, binding = random_plan(json.loads((folder / "config.json").read_text()), shape, seed)
    return load(folder), load(cut_to(folder, folder.parent / "cut", plan)), binding, plan


def repaired(
    base: Any, model: Any, binding: Any, plan: Plan, windows: torch.Tensor = WINDOWS, **how: Any
) -> tuple[dict[str, torch.Tensor], list[ProjectionRepair]]:
    """Repair the cut model in memory, as the pipeline repairs its file."""
    weights: dict[str, torch.Tensor] = {}
    cut_model = model if needs_cut_model(binding, plan) else None
    repairs = compensate(base, binding, plan, windows, weights.__setitem__, cut_model=cut_model, **how)
    state = model.state_dict()
    cut = bind_config({**model.config.to_dict(), "model_type": plan.model_type})[1]
    names = {bound.name: bound.parameter for bound in cut.tensors.values()}
    for name, weight in weights.items():
        assert weight.dtype == torch.float64
        if names[name] in state:  # experts, which have other names in memory, were replaced in place
            state[names[name]].copy_(weight)
    return weights, repairs


def divergence(base: Any, model: Any, windows: torch.Tensor) -> float:
    with torch.no_grad():
        return kl_divergence(base(windows).logits, model(windows).logits).mean().item()


def test_removed_neurons_that_others_can_replace_leave_the_output_unchanged(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama", hidden_act="relu"))
    base = load(folder)
    with torch.no_grad():
        for layer in base.model.layers:
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                projection.weight[12:] = projection.weight[:12]
    base.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    plan, _, binding = random_plan(raw, {"intermediate_size": 12}, 0)
    plan = dataclasses.replace(plan, units={**plan.units, "intermediate_size": (tuple(range(12)),) * 4})
    model = load(cut_to(folder, tmp_path / "cut", plan))
    before = divergence(base, model, WINDOWS)
    weights, repairs = repaired(base, model, binding, plan)
    assert len(weights) == len(repairs) == 4
    assert divergence(base, model, WINDOWS) < before / 1000


@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_every_architecture_is_repaired(
    model_type: str, variant: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "RIDGES", (0.1,))  # another test covers the choice of a ridge
    config = tiny_config(model_type, variant)
    folder = save_tiny(tmp_path / "base", config)
    wanted = {"num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 16}
    shape = supported_shape(config, wanted)
    # Nothing in front of a first layer that is dropped can take over what it did.
    raw = json.loads((folder / "config.json").read_text())
    seed = next(seed for seed in range(3, 30) if random_plan(raw, shape, seed)[0].layers[0] == 0)
    base, model, binding, plan = cut_pair(folder, shape, seed)
    weights, repairs = repaired(base, model, binding, plan)
    assert repairs
    assert set(weights) == {repair.name.partition("[")[0] for repair in repairs if repair.ridge is not None}
    if "experts" in binding.sizes and "intermediate_size" in shape:
        assert sum("experts" in repair.name or "output_linear" in repair.name for repair in repairs) > 3
    assert all(repair.new_error <= repair.error for repair in repairs)
    assert model(WINDOWS).logits.isfinite().all()


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "phi", "gpt_neox", "apertus"])
def test_cut_layers_equal_the_bases_layers_with_channels_unread(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "RIDGES", (0.1,))
    config = tiny_config(model_type)
    folder = save_tiny(tmp_path / "base", config)
    wanted = {"num_hidden_layers": 3, "intermediate_size": 16}
    base, model, binding, plan = cut_pair(folder, supported_shape(config, wanted))
    masked: dict[str, torch.Tensor] = {}
    sliced: dict[str, torch.Tensor] = {}
    found = compensate(base, binding, plan, WINDOWS, masked.__setitem__)
    other = compensate(base, binding, plan, WINDOWS, sliced.__setitem__, cut_model=model)
    assert [repair.name for repair in found] == [repair.name for repair in other]
    for name in masked.keys() & sliced.keys():
        torch.testing.assert_close(masked[name], sliced[name], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("shape", [{"intermediate_size": 16}, {"num_experts": 3}])
def test_experts_that_were_cut_are_fitted_to_the_whole_layer(
    model_type: str, shape: dict[str, int], tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type))
    base, model, binding, plan = cut_pair(folder, shape)
    before = divergence(base, model, WINDOWS)
    weights, repairs = repaired(base, copy.deepcopy(model), binding, plan)
    stored = load_file(tmp_path / "cut" / "model.safetensors")
    assert weights and all(stored[name].shape == weight.shape for name, weight in weights.items())
    save_file(
        {**stored, **{name: weight.float().contiguous() for name, weight in weights.items()}},
        tmp_path / "cut" / "model.safetensors",
        {"format": "pt"},
    )
    assert divergence(base, load(tmp_path / "cut"), WINDOWS) < 0.9 * before
    kept = {name.partition("[")[0] for name in (repair.name for repair in repairs)}
    assert all("down_proj" in name for name in kept)


def test_the_layer_before_replaces_a_dropped_layer(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("qwen3"))
    base, model, binding, plan = cut_pair(folder, {"num_hidden_layers": 2})
    before = divergence(base, model, WINDOWS)
    _, repairs = repaired(base, model, binding, plan)
    removed = sorted(set(range(4)) - set(plan.layers))
    before_gap = [i for i, layer in enumerate(plan.layers) if layer + 1 in removed]
    assert [repair.name for repair in repairs] == [f"model.layers.{i}.mlp.down_proj.weight" for i in before_gap]
    assert divergence(base, model, WINDOWS) < before


def test_the_file_holds_the_refitted_weights(llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    how = {
        "intermediate_size": 16,
        "calibration": str(text_file),
        "calibration_samples": 16,
        "calibration_length": 32,
        "evaluate": False,
        "benchmark": False,
    }
    shrinker = IShrinker.from_pretrained(llama_folder, dtype="float32", device="cpu")
    plain = shrinker.shrink(compensation="none", save_directory=tmp_path / "plain", **how)
    repaired = shrinker.shrink(compensation="ridge", save_directory=tmp_path / "repaired", **how)
    assert plain.plan.units == repaired.plan.units
    assert plain.report.compensation == CompensationRecord("none")
    found = Run.read(tmp_path / "repaired").report.compensation
    assert found is not None and found.method == "ridge"
    changed = {repair.name for repair in found.repairs if repair.ridge is not None}
    assert changed
    before, after = read_index(tmp_path / "plain"), read_index(tmp_path / "repaired")
    for name in before:
        same = torch.equal(read_tensor(before[name]), read_tensor(after[name]))
        assert same == (name not in changed), name
    assert "ridge regression" in (tmp_path / "repaired" / "README.md").read_text()
    assert "ridge regression" not in (tmp_path / "plain" / "README.md").read_text()


def test_too_few_windows_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama"))
    base, model, binding, plan = cut_pair(folder, {"intermediate_size": 16})
    with pytest.raises(DataError, match="needs at least 4 calibration windows, not 3"):
        repaired(base, model, binding, plan, WINDOWS[:3])


def test_too_few_windows_are_refused_before_the_work(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimum_ishrink.pipeline.cutting.score", lambda *_, **__: pytest.fail("scoring had started"))
    with pytest.raises(DataError, match="at least 4 calibration windows, not 2; raise calibration_samples"):
        IShrinker.from_pretrained(llama_folder).shrink(intermediate_size=16, calibration_samples=2)


def test_activations_that_are_not_finite_name_the_layer(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama"))
    base, model, binding, plan = cut_pair(folder, {"intermediate_size": 16})
    with torch.no_grad():
        base.model.layers[2].mlp.up_proj.weight.fill_(1e30)
    with pytest.raises(DataError, match=r"layer 2, mlp\.down_proj: the activations are not finite"):
        repaired(base, model, binding, plan)


def test_too_few_tokens_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama"))
    base, model, binding, plan = cut_pair(folder, {"intermediate_size": 16})
    repaired(base, model, binding, plan, WINDOWS[:4, :3])
    notes = [line for line in capsys.readouterr().err.splitlines() if "fewer than" in line]
    assert notes
    assert "12 calibration tokens are fewer than the 16 inputs of mlp.down_proj, so its ridge is at least" in notes[0]
    repaired(base, model, binding, plan)
    assert "fewer than" not in capsys.readouterr().err


def test_a_model_whose_layers_cannot_be_run_one_by_one_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("bloom"))
    _, binding = bind_config(json.loads((folder / "config.json").read_text()))
    with pytest.raises(RequestError, match="^compensation runs the layers of a model one by one, and those of bloom"):
        check_compensation(CompensationOptions(calibration_samples=64), binding)
    check_compensation(CompensationOptions(compensation="none"), binding)
    with pytest.raises(RequestError, match="this method runs the layers"):
        enter_layers(load(folder), binding, [WINDOWS])
