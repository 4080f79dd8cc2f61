"""The average of the weights over the steps, and learning rates that differ from layer to layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink.recovery import training as run
from optimum_ishrink.recovery.trainable import add_lora, learning_rate_shares, train_parameters
from optimum_ishrink.recovery.weight_average import WeightAverage, decay_at
from tests.helpers.small_recovery import LAYERS, cut_model, go, settings, shallow
from tests.helpers.tiny import tiny_config, tiny_model

DECAY = 0.6


class Recorder(run.RecoveryTrainer):
    """Notes the learning rate of each group of parameters, and how many there are."""

    groups: list[tuple[float, int]]

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        self.groups[:] = [(group["initial_lr"], len(group["params"])) for group in self.optimizer.param_groups]
        return super().training_step(*arguments, **named)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    Recorder.groups = []
    monkeypatch.setattr(run, "RecoveryTrainer", Recorder)
    return Recorder


def test_the_average_is_that_of_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[dict[str, torch.Tensor]] = []

    class Watched(WeightAverage):
        def note(self) -> None:
            weights.append({name: parameter.detach().clone() for name, parameter in self.parameters.items()})

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.note()
            super().on_train_begin(args, state, control)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.note()
            super().on_step_end(args, state, control)

    monkeypatch.setattr(run, "WeightAverage", Watched)
    found = go(tmp_path, trained="full", ema=DECAY, save_steps=100)
    assert len(weights) == 1 + found.record.steps == 9
    average = weights[0]
    for step, after in enumerate(weights[1:], start=1):
        kept = decay_at(step, DECAY)
        average = {name: kept * average[name] + (1 - kept) * after[name] for name in average}
    for name, value in average.items():
        torch.testing.assert_close(found.parameters[name.removeprefix("model.")], value, atol=1e-6, rtol=1e-5)
        assert not torch.equal(value, weights[-1][name]), name
    assert found.record.ema == DECAY


def test_it_is_evaluated_saved_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt

    how: dict[str, Any] = {"trained": "norms+last:1", "ema": DECAY, "layer_decay": 0.5}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.ShowProgress, "on_pre_optimizer_step", stop, raising=False)
        go(tmp_path / "parts", **how)
    parts, whole = go(tmp_path / "parts", **how), go(tmp_path / "whole", **how)
    assert parts.record.resumed_from_step == 4
    assert parts.record.held_out_losses == whole.record.held_out_losses
    for name, value in whole.parameters.items():
        assert torch.equal(parts.parameters[name], value), name
    plain = go(tmp_path / "plain", **{**how, "ema": None})
    assert plain.record.held_out_loss_before == whole.record.held_out_loss_before
    assert plain.losses == whole.losses
    assert plain.record.held_out_losses != whole.record.held_out_losses
    # The held-out loss is that of what is saved.
    student = cut_model(shallow())
    parameters = dict(student.named_parameters())
    with torch.no_grad():
        for name, value in whole.parameters.items():
            parameters[name].copy_(value)
    again = go(tmp_path / "again", model=student, trained="norms", learning_rate=1e-9)
    assert again.record.held_out_loss_before == pytest.approx(whole.record.held_out_loss, abs=1e-6)


def test_the_parameters_have_it_for_a_while_only() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    average = WeightAverage(0.5, {"w": parameter})
    with average.in_place():  # before the training there is none
        assert parameter.tolist() == [0, 0]
    average.resume({"w": torch.ones(2)})
    with pytest.raises(KeyboardInterrupt), average.in_place():
        assert parameter.tolist() == [1, 1]
        raise KeyboardInterrupt
    assert parameter.tolist() == [0, 0]


def test_the_first_steps_retain_less() -> None:
    assert decay_at(1, 0.99) == pytest.approx(2 / 11)
    assert decay_at(10_000, 0.99) == 0.99
    assert [decay_at(step, 0.99) for step in range(1, 50)] == sorted(decay_at(step, 0.99) for step in range(1, 50))


def test_rates_fall_from_the_head_to_the_embedding() -> None:
    model = tiny_model(tiny_config("llama"))
    train_parameters(model, ("full",), LAYERS)
    shares = learning_rate_shares(model, LAYERS, 0.5)
    assert shares["model.embed_tokens.weight"] == 0.5**4
    assert [shares[f"{layer}.mlp.up_proj.weight"] for layer in LAYERS] == [0.125, 0.25, 0.5, 1]
    assert shares["model.norm.weight"] == shares["lm_head.weight"] == 1
    adapted = add_lora(tiny_model(tiny_config("llama")), settings())
    shares = learning_rate_shares(adapted, LAYERS, 0.5)
    assert shares["base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight"] == 0.25


def test_the_optimiser_has_them(tmp_path: Path, recorder: type[Recorder]) -> None:
    found = go(tmp_path, trained="full", layer_decay=0.5, learning_rate=4e-3)
    rates = sorted((rate for rate, _ in recorder.groups), reverse=True)
    assert rates == pytest.approx([4e-3, 2e-3, 1e-3])
    assert sum(count for _, count in recorder.groups) == len(found.parameters)
    assert max(found.learning_rates) == pytest.approx(4e-3, rel=0.2)
    assert found.record.layer_decay == 0.5
