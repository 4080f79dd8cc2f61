"""The figure of what was removed by importance, where layers or experts have unlike numbers of neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink.architectures.axes import layers_with
from optimum_ishrink.card import figures
from tests.helpers.cutting import random_plan
from tests.helpers.tiny import tiny_raw_config


def panel(plan: Any, scores: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The panel of the neurons."""
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    figures.draw_importance(plan, {"intermediate_size": scores}, Path("importance.png"))
    (axis,) = drawn[0].axes
    return axis


def test_neurons_of_dropped_experts_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _, _ = random_plan(tiny_raw_config("mixtral"), {"num_experts": 3, "intermediate_size": 16}, 0)
    axis = panel(plan, torch.ones(4, 4 * 24), monkeypatch)
    assert axis.get_title(loc="left").startswith("MLP neurons: importance of the 50.0% removed")  # 3 * 16 of 4 * 24
    assert [bar.get_height() for bar in axis.patches[4:]] == pytest.approx([50.0] * 4)


def test_a_layer_without_neurons_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _, binding = random_plan(tiny_raw_config("nemotron_h"), {"intermediate_size": 16}, 0)
    scores = torch.ones(4, binding.mlps * binding.sizes["ffn"])
    without = sorted(set(plan.layers) - set(layers_with(binding, "intermediate_size")))
    scores[without] = 0.0
    heights = [bar.get_height() for bar in panel(plan, scores, monkeypatch).patches[4:]]
    assert without and all(heights[layer] == 0 for layer in without)
    assert all(0 < height < 100 for layer, height in enumerate(heights) if layer not in without)
