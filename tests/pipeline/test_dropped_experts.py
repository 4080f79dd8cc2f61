"""Whole experts dropped from a mixture, from the request to what plain transformers loads."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from optimum_ishrink import IShrinker
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.checkpoint.source import source_of_config
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.importance.criterion import EXPERT_CRITERIA
from optimum_ishrink.importance.engine import score_model
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.shape import complete_shape
from optimum_ishrink.planning.stage import plan as make_plan
from optimum_ishrink.report.plan import Choice
from tests.helpers.cutting import cut_to, load, random_plan
from tests.helpers.tiny import save_tiny, tiny_config, tiny_model

HOW: dict[str, Any] = {
    "calibration_samples": 8,
    "calibration_length": 16,
    "compensation": "none",
    "evaluate": False,
    "benchmark": False,
}


@pytest.fixture(scope="module")
def mixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("mixture"), tiny_config("qwen2_moe"))


def test_the_request_names_experts_and_the_result_loads(mixture_folder: Path, text_file: Path, tmp_path: Path) -> None:
    shrinker = IShrinker.from_pretrained(mixture_folder, dtype="float32", device="cpu")
    result = shrinker.shrink(num_experts=3, calibration=str(text_file), save_directory=tmp_path / "cut", **HOW)
    assert result.plan.choice.expert_importance == "reap"
    assert result.plan.choice.importance is None
    assert [len(row) for row in result.plan.units["num_experts"]] == [3, 0, 3, 3]  # layer 1 is dense
    assert result.plan.inexact == ()
    model = load(tmp_path / "cut")
    assert model.config.num_experts == 3
    assert sum(parameter.numel() for parameter in model.parameters()) == result.plan.new_num_parameters
    card = (tmp_path / "cut" / "README.md").read_text()
    assert "Experts were scored by **reap**" in card
    assert "1 expert of each layer that has any (25.0%)" in card.replace("&#32;", " ")
    # Scores of weights alone need neither text nor the model in memory.
    weights = shrinker.plan(num_experts=3, expert_importance="l2-norm", **HOW)
    assert weights.choice.expert_importance == "l2-norm"
    assert weights.choice.calibration is None


def test_all_dimensions_of_a_mixture_at_once(mixture_folder: Path, text_file: Path, tmp_path: Path) -> None:
    shrinker = IShrinker.from_pretrained(mixture_folder, dtype="float32", device="cpu")
    shape = {"num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 16, "num_experts": 2}
    result = shrinker.shrink(
        **shape,
        num_experts_per_tok=1,
        importance="taylor",
        calibration=str(text_file),
        intermediate_multiple=8,
        save_directory=tmp_path / "cut",
        **HOW,
    )
    assert {key: result.plan.new_shape[key] for key in shape} == shape
    assert result.plan.inexact == ("each token is routed to fewer experts than in the original",)
    model = load(tmp_path / "cut")
    assert (model.config.num_experts, model.config.num_experts_per_tok, model.config.moe_intermediate_size) == (
        2,
        1,
        16,
    )


@pytest.mark.parametrize("model_type", ["qwen2_moe", "gpt_oss"])  # stored one by one, and in one tensor
def test_what_was_refitted_is_in_the_file(model_type: str, text_file: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type))
    shrinker = IShrinker.from_pretrained(folder, dtype="float32", device="cpu")
    how = {**HOW, "num_experts": 3, "intermediate_size": 16, "intermediate_multiple": 8, "calibration": str(text_file)}
    plain = shrinker.shrink(save_directory=tmp_path / "plain", **how)
    result = shrinker.shrink(save_directory=tmp_path / "repaired", **{**how, "compensation": "ridge"})
    assert plain.plan.units == result.plan.units
    repairs = result.report.compensation.repairs
    changed = {repair.name.partition("[")[0] for repair in repairs if repair.ridge is not None}
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "repaired"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed
    assert any(".experts." in name for name in changed)
    load(tmp_path / "repaired")


def test_a_target_drops_experts(mixture_folder: Path) -> None:
    shrinker = IShrinker.from_pretrained(mixture_folder, dtype="float32", device="cpu")
    plan = shrinker.plan(target="params=-9%", prune=["num_experts"], expert_importance="l2-norm", **HOW)
    changed = {key for key, size in plan.new_shape.items() if size != plan.shape[key]}
    assert changed == {"num_experts"}


BAD = [
    (
        {"num_experts": 1},
        "num_experts=1 is fewer than the 2 experts that every token is routed to: the least is 2; or",
    ),
    ({"num_experts": 9}, "num_experts=9 is not between 1 and the model's 4; nearest num_experts: 4"),
    ({"num_experts_per_tok": 3}, "num_experts_per_tok=3 is not between 1 and the model's 2; nearest"),
]


@pytest.mark.parametrize(("request_", "message"), BAD)
def test_impossible_numbers_are_refused(request_: dict[str, int], message: str, mixture_folder: Path) -> None:
    with pytest.raises(ShapeError) as error:
        IShrinker.from_pretrained(mixture_folder).plan(**request_, **HOW)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dense_model_has_no_experts(llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(llama_folder), "--num-experts", "2"]) == 2
    assert capsys.readouterr().err.strip().endswith("num_experts cannot change for llama: the model has no experts")
    assert main(["plan", "--model", str(llama_folder), "--target", "params=-15%", "--prune", "num_experts"]) == 2
    line = capsys.readouterr().err.strip()
    assert line.endswith("prune names num_experts, which cannot change for llama: the model has no experts")


def test_groups_of_experts_lose_the_same_number(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("glm4_moe", 1))
    shrinker = IShrinker.from_pretrained(folder)
    plan = shrinker.plan(num_experts=6, expert_importance="l2-norm", **HOW)
    halves = [
        [sum(unit < 4 for unit in row), sum(unit >= 4 for unit in row)] for row in plan.units["num_experts"] if row
    ]
    assert halves and all(half == [3, 3] for half in halves)
    with pytest.raises(ShapeError, match="num_experts=5 is not a multiple of the 2 groups that the router chooses"):
        shrinker.plan(num_experts=5, **HOW)
    with pytest.raises(ShapeError, match="sums the two best scores of every group"):
        shrinker.plan(num_experts=2, **HOW)


LANGUAGES, WORDS = 4, 24


def speech(languages: list[int], count: int, seed: int) -> torch.Tensor:
    """Windows of made-up languages: each has words of its own, and rules for what follows what."""
    generator = torch.Generator().manual_seed(seed)
    rules = torch.rand(LANGUAGES, WORDS, WORDS, generator=torch.Generator().manual_seed(9)).pow(12)
    which = torch.tensor(languages)[torch.randint(len(languages), (count,), generator=generator)]
    words = [torch.randint(WORDS, (count,), generator=generator)]
    for _ in range(15):
        words.append(torch.multinomial(rules[which, words[-1]], 1, generator=generator)[:, 0])
    return torch.stack(words, dim=1) + which[:, None] * WORDS


@cache
def trained_mixture() -> Any:
    config = tiny_config(
        "mixtral", vocab_size=LANGUAGES * WORDS, num_hidden_layers=2, num_local_experts=8, num_experts=8, head_dim=4
    )
    model = tiny_model(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(150):
        batch = speech(list(range(LANGUAGES)), 32, seed=step)
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_reap_drops_better_experts_than_chance(tmp_path: Path) -> None:
    model = trained_mixture()
    model.save_pretrained(tmp_path / "base")
    raw = json.loads((tmp_path / "base" / "config.json").read_text())
    _, binding = bind_config(raw)
    calibration, held_out = speech([0, 1], 64, seed=1001), speech([0, 1], 64, seed=1002)
    how = {"expert_criterion": EXPERT_CRITERIA["reap"]}
    scores = score_model(model, binding, calibration, None, None, ("num_experts",), **how)
    shape = {"num_experts": 4}
    by_reap = make_plan(source_of_config(raw), ShapeOptions(**shape), complete_shape(binding, shape), scores, Choice())
    plans = [by_reap, *(random_plan(raw, shape, seed)[0] for seed in range(5))]
    losses = []
    for number, plan in enumerate(plans):
        cut = load(cut_to(tmp_path / "base", tmp_path / f"cut-{number}", plan))
        with torch.no_grad():
            losses.append(float(cut(held_out, labels=held_out).loss))
    with torch.no_grad():
        whole = float(model(held_out, labels=held_out).loss)
    chance = sum(losses[1:]) / len(losses[1:])
    assert whole < chance
    assert losses[0] < chance - 0.2 * (chance - whole), (whole, losses)
