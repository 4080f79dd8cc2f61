"""Scores of a model whose layers come from disk are those of the model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimum_ishrink.architectures.description import EXPERTS
from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.errors import NotFiniteError
from optimum_ishrink.importance.criterion import EXPERT_CRITERIA, LAYER_CRITERIA, UNIT_CRITERIA
from optimum_ishrink.importance.engine import score_model
from optimum_ishrink.importance.expert_outputs import compare_experts
from tests.helpers.offloaded import from_disk, page_everything
from tests.helpers.scored_models import WINDOWS
from tests.helpers.tiny import LAYOUT_CASES, save_tiny, tiny_config

CRITERIA = (("fisher", "block-influence"), ("gradient-norm", "fisher"), ("activation-norm", "block-influence"))
"""Criteria of units and of layers, which share a pass where they can."""

APPROXIMATE = ("gpt_oss", "jamba")
"""Architectures whose gradients are summed in another order when layers run one by one: 1e-5 of the largest score."""


def scores_of(model: Any, source: Source, unit: str | None, layer: str | None, **how: Any) -> dict[str, torch.Tensor]:
    fixed = source.binding.description.dimensions
    keys = tuple(key for key in ("num_key_value_heads", "intermediate_size") if not fixed[key].fixed) if unit else ()
    keys = (*keys, "num_hidden_layers") if layer else keys
    criteria = (UNIT_CRITERIA[unit] if unit else None, LAYER_CRITERIA[layer] if layer else None)
    return score_model(model, source.binding, WINDOWS, *criteria, keys, **how)


@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_scores_are_the_same_to_the_bit(
    model_type: str, variant: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_everything(monkeypatch)
    source = open_source(save_tiny(tmp_path / "base", tiny_config(model_type, variant)))
    whole, paged = source.load_model(torch.float32, torch.device("cpu")), from_disk(source)
    for unit, layer in CRITERIA:
        expected = scores_of(whole, source, unit, layer)
        for key, found in scores_of(paged, source, unit, layer).items():
            if model_type in APPROXIMATE:
                torch.testing.assert_close(found, expected[key], rtol=0, atol=1e-5 * float(expected[key].max()))
            else:
                assert torch.equal(found, expected[key]), (unit, layer, key)


@pytest.mark.parametrize(("unit", "layer"), [("obs", "perplexity"), ("logits-mse", "divergence"), ("taylor", None)])
def test_every_other_criterion_gives_the_same(unit: str, layer: str | None, tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "base", tiny_config("llama", num_hidden_layers=3)))
    expected = scores_of(source.load_model(torch.float32, torch.device("cpu")), source, unit, layer)
    for key, found in scores_of(from_disk(source), source, unit, layer).items():
        assert torch.equal(found, expected[key])


def test_experts_are_scored_and_compared_the_same(tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "base", tiny_config("mixtral")))
    whole, paged = source.load_model(torch.float32, torch.device("cpu")), from_disk(source)
    for name in ("reap", "frequency"):
        how = {"expert_criterion": EXPERT_CRITERIA[name]}
        expected = score_model(whole, source.binding, WINDOWS, None, None, (EXPERTS,), **how)
        found = score_model(paged, source.binding, WINDOWS, None, None, (EXPERTS,), **how)
        assert torch.equal(found[EXPERTS], expected[EXPERTS])
    expected = compare_experts(whole, source.binding, WINDOWS)
    for key, values in compare_experts(paged, source.binding, WINDOWS).items():
        assert torch.equal(values, expected[key])


def test_in_bfloat16_scores_are_the_same_too(tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "base", tiny_config("llama")))
    expected = scores_of(source.load_model(torch.bfloat16, torch.device("cpu")), source, "fisher", "block-influence")
    for key, found in scores_of(from_disk(source, torch.bfloat16), source, "fisher", "block-influence").items():
        assert torch.equal(found, expected[key])


@pytest.mark.parametrize(
    ("broken", "message"), [("layers.1.", "layer 1 gives values"), ("norm", "the loss of the cal")]
)
def test_values_that_are_not_finite_are_an_error_that_names_the_layer(
    broken: str, message: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama"))
    state = load_file(folder / "model.safetensors")
    name = "model.norm.weight" if broken == "norm" else f"model.{broken}mlp.down_proj.weight"
    state[name] = torch.full_like(state[name], torch.inf)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    source = open_source(folder)
    with pytest.raises(NotFiniteError, match=message):
        scores_of(from_disk(source), source, "fisher", None)
