"""Zeros that stay zero in a training, also in one that was stopped and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink.recovery import training as run
from optimum_ishrink.recovery.kept_zeros import KeepZeros
from optimum_ishrink.recovery.teacher import LayerMap, LiveTeacher
from tests.helpers.small_recovery import LAYERS, random_text, settings, shallow

SPARSE = [f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in (0, 1) for name in ("up", "down")]


def sparse_model() -> Any:
    model = shallow()
    with torch.no_grad():
        for name in SPARSE:
            weight = model.get_parameter(name)
            weight.unflatten(-1, (-1, 4))[..., :2] = 0
    return model


def go(folder: Path, model: Any, **changes: Any) -> Any:
    teacher = LiveTeacher(shallow(), layers=True, values=True)
    options = settings(**{"trained": "full", **changes})
    return run.train(
        model, teacher, random_text(), options, folder, layers=LAYERS[:2], layer_map=LayerMap.even(2, 2), sparse=SPARSE
    )


def test_they_stay_and_all_else_is_trained(tmp_path: Path) -> None:
    base, model = sparse_model(), sparse_model()
    trained = go(tmp_path, model).parameters
    assert trained.keys() == dict(base.named_parameters()).keys()
    for name, before in base.named_parameters():
        assert not torch.equal(trained[name], before), name
        if name in SPARSE:
            assert torch.equal(trained[name] == 0, before == 0), name


def test_a_resumed_training_is_the_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.ShowProgress, "on_pre_optimizer_step", stop, raising=False)
        go(tmp_path / "parts", sparse_model())
    parts, whole = go(tmp_path / "parts", sparse_model()), go(tmp_path / "whole", sparse_model())
    assert parts.record.resumed_from_step == 4
    for name, value in whole.parameters.items():
        assert torch.equal(parts.parameters[name], value), name


def test_what_cannot_change_counts_in_no_gradient() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 0.0, 2.0, 0.0]))
    zeros = KeepZeros([parameter])
    (parameter * torch.arange(1.0, 5.0)).sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [1.0, 0.0, 3.0, 0.0]
    with torch.no_grad():
        parameter += 1
    zeros.on_optimizer_step(None, None, None)
    assert parameter.tolist() == [2.0, 0.0, 3.0, 0.0]
