from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_masked_equals_sliced import cut_to, load, random_plan
from tiny import CASES, VOCAB, save_tiny, supported_shape, tiny_config

from optimum_ishrink import IShrinker
from optimum_ishrink.artifacts import Plan, read_json
from optimum_ishrink.errors import DataError
from optimum_ishrink.evaluation import kl_divergence
from optimum_ishrink.surgery.compensation import Moments, choose_repair, compensate, restrict_rank, solve_ridge
from optimum_ishrink.tensor_files import read_index, read_tensor

WINDOWS = torch.randint(3, VOCAB, (24, 16), generator=torch.Generator().manual_seed(0))


def test_the_ridge_goes_from_least_squares_to_the_weight_that_was() -> None:
    torch.manual_seed(0)
    x, y, w = torch.randn(200, 6), torch.randn(200, 3), torch.randn(3, 6)
    loose = solve_ridge(x.T @ x, y.T @ x, w, 1e-12)
    torch.testing.assert_close(loose.float(), torch.linalg.lstsq(x, y).solution.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(solve_ridge(x.T @ x, y.T @ x, w, 1e9).float(), w, atol=1e-5, rtol=1e-5)
    # The gradient of the ridge's own objective is zero at the solution.
    solved, strength = solve_ridge(x.T @ x, y.T @ x, w, 0.3), 0.3 * (x.T @ x).diagonal().mean()
    gradient = (x.double() @ solved.T - y).T @ x.double() + strength * (solved - w)
    assert gradient.abs().max() < 1e-4


def test_a_map_of_low_rank_is_the_nearest_on_the_inputs() -> None:
    torch.manual_seed(0)
    x, update = torch.randn(200, 6) * torch.tensor([9.0, 1, 1, 1, 1, 0.1]), torch.randn(5, 6).double()
    gram = x.T @ x

    def error(change: torch.Tensor) -> float:
        return float((x.double() @ (change - update).T).square().sum())

    for rank in (1, 2, 4):
        best = restrict_rank(update, gram, rank)
        assert torch.linalg.matrix_rank(best) == rank
        left, size, right = torch.linalg.svd(update, full_matrices=False)
        assert error(best) < error(left[:, :rank] * size[:rank] @ right[:rank])
        for _ in range(20):
            near = best + 0.01 * torch.randn(5, rank).double() @ torch.linalg.svd(best).Vh[:rank]
            assert error(best) <= error(near)
    torch.testing.assert_close(restrict_rank(update, gram, 5), update)


def test_directions_without_data_keep_the_weight() -> None:
    x, w = torch.zeros(50, 4), torch.randn(2, 4)
    x[:, 0] = torch.randn(50)
    solved = solve_ridge(x.T @ x, torch.ones(50, 2).T @ x, w, 0.01)
    torch.testing.assert_close(solved[:, 1:].float(), w[:, 1:])


def test_what_cannot_be_solved() -> None:
    with pytest.raises(DataError, match="not finite"):
        solve_ridge(torch.full((2, 2), float("nan")), torch.ones(1, 2), torch.ones(1, 2), 0.1)
    with pytest.raises(DataError, match="too uniform to solve"):
        solve_ridge(torch.tensor([[1.0, 5.0], [5.0, 1.0]]), torch.ones(1, 2), torch.ones(1, 2), 0.0)


def test_the_error_is_the_unexplained_share() -> None:
    torch.manual_seed(1)
    x, y, w = torch.randn(40, 5), torch.randn(40, 3), torch.randn(3, 5)
    moments = Moments.zeros(w)
    moments.add(x[:15], y[:15])
    moments.add(x[15:], y[15:])
    assert moments.error(w) == pytest.approx(((x @ w.T - y).square().sum() / y.square().sum()).item(), rel=1e-4)


def test_a_weight_that_is_already_best_stays() -> None:
    torch.manual_seed(2)
    w = torch.randn(3, 5)
    fit, held = Moments.zeros(w), Moments.zeros(w)
    fit.add(torch.randn(30, 5), torch.randn(30, 3))  # noise to be fitted
    x = torch.randn(30, 5)
    held.add(x, x @ w.T)
    solved, ridge = choose_repair(fit, held, w)
    assert ridge is None
    assert torch.equal(solved, w.double())


def cut_pair(folder: Path, shape: dict[str, int], seed: int = 3) -> tuple[Any, Any, Any, Plan]:
    plan, _, binding = random_plan(json.loads((folder / "config.json").read_text()), shape, seed)
    return load(folder), load(cut_to(folder, folder.parent / "cut", plan)), binding, plan


def divergence(base: Any, model: Any, windows: torch.Tensor) -> float:
    with torch.no_grad():
        return kl_divergence(base(windows).logits, model(windows).logits).mean().item()


def test_neurons_that_others_can_stand_in_for_are_lost_without_a_trace(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama", hidden_act="relu"))
    base = load(folder)
    with torch.no_grad():
        for layer in base.model.layers:
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                projection.weight[12:] = projection.weight[:12]
    base.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    plan, _, binding = random_plan(raw, {"intermediate_size": 12}, 0)
    import dataclasses

    plan = dataclasses.replace(plan, units={**plan.units, "intermediate_size": (tuple(range(12)),) * 4})
    model = load(cut_to(folder, tmp_path / "cut", plan))
    before = divergence(base, model, WINDOWS)
    weights, repairs = compensate(base, model, binding, plan, WINDOWS)
    assert len(weights) == len(repairs) == 4
    assert divergence(base, model, WINDOWS) < before / 1000


@pytest.mark.parametrize(("model_type", "variant"), CASES)
def test_every_architecture_is_repaired(model_type: str, variant: int, tmp_path: Path) -> None:
    config = tiny_config(model_type, variant)
    folder = save_tiny(tmp_path / "base", config)
    wanted = {"num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 16}
    base, model, binding, plan = cut_pair(folder, supported_shape(config, wanted))
    weights, repairs = compensate(base, model, binding, plan, WINDOWS)
    assert repairs or model_type == "olmoe"  # neither its heads nor, in closed form, its experts
    assert set(weights) == {repair.name for repair in repairs if repair.ridge is not None}
    assert all(repair.new_error <= repair.error * (1 + 1e-6) + 1e-9 for repair in repairs)
    state = model.state_dict()
    for name, weight in weights.items():
        torch.testing.assert_close(state[name], weight.float(), atol=1e-6, rtol=1e-5)
    assert model(WINDOWS).logits.isfinite().all()


def test_a_dropped_layer_is_taken_over_by_the_one_before(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("qwen3"))
    base, model, binding, plan = cut_pair(folder, {"num_hidden_layers": 2})
    before = divergence(base, model, WINDOWS)
    _, repairs = compensate(base, model, binding, plan, WINDOWS)
    gone = sorted(set(range(4)) - set(plan.layers))
    before_gap = [i for i, layer in enumerate(plan.layers) if layer + 1 in gone]
    assert [repair.name for repair in repairs] == [f"model.layers.{i}.mlp.down_proj.weight" for i in before_gap]
    assert divergence(base, model, WINDOWS) < before


def test_the_file_holds_what_was_solved(llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    how = {
        "intermediate_size": 16,
        "calibration": str(text_file),
        "calibration_samples": 16,
        "calibration_length": 32,
        "evaluate": False,
        "benchmark": False,
    }
    shrinker = IShrinker.from_pretrained(llama_folder, dtype="float32", device="cpu")
    plain = shrinker.shrink(save_directory=tmp_path / "plain", **how)
    repaired = shrinker.shrink(compensation="ridge", save_directory=tmp_path / "repaired", **how)
    assert plain.plan.units == repaired.plan.units
    repairs = Plan.from_json(read_json(tmp_path / "repaired" / "ishrink_plan.json")).settings["compensation"][
        "repairs"
    ]
    changed = {repair["name"] for repair in repairs if repair["ridge"] is not None}
    assert changed
    before, after = read_index(tmp_path / "plain"), read_index(tmp_path / "repaired")
    for name in before:
        same = torch.equal(read_tensor(before[name]), read_tensor(after[name]))
        assert same == (name not in changed), name
    assert "solved anew in closed form" in (tmp_path / "repaired" / "README.md").read_text()
    assert "solved anew" not in (tmp_path / "plain" / "README.md").read_text()


def test_too_few_windows(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama"))
    base, model, binding, plan = cut_pair(folder, {"intermediate_size": 16})
    with pytest.raises(DataError, match="needs at least 8 calibration windows, not 3"):
        compensate(base, model, binding, plan, WINDOWS[:3])
