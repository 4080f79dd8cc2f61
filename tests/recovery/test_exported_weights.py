"""Training for an export: what the forward pass reads, what the optimiser moves, and what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import RequestError
from optimum_ishrink.recovery.exported_weights import ExportedValues, ExportedWeights, StepOnExact
from optimum_ishrink.recovery.teacher import LayerMap, LiveTeacher
from optimum_ishrink.recovery.trainable import add_lora, train_parameters
from optimum_ishrink.recovery.training import train
from tests.helpers.small_recovery import LAYERS, cut_model, random_text, settings, shallow

STEP = 0.25


def coarse(weight: torch.Tensor) -> torch.Tensor:
    """A quantisation as coarse as one of three bits."""
    return (weight.float() / STEP).round().mul(STEP)


def exported(model: Any, dtype: torch.dtype = torch.bfloat16) -> ExportedValues:
    names = [name for name, value in model.named_parameters() if value.ndim > 1]
    return ExportedValues("q4_0", dict.fromkeys(names, coarse), {name: dtype for name, _ in model.named_parameters()})


def go(folder: Path, **changes: Any) -> Any:
    model = cut_model(shallow().bfloat16().float())  # as a checkpoint in bfloat16 is loaded
    return train(
        model,
        LiveTeacher(shallow(), layers=True, values=True),
        random_text(),
        settings(**changes),
        folder,
        layers=LAYERS[:2],
        layer_map=LayerMap.even(2, 2),
        exported=exported(model),
    )


def loss_of(model: Any) -> float:
    """The held-out divergence from the teacher."""
    text, teacher = random_text(), shallow()
    ids = text.input_ids[text.trained :]
    with torch.no_grad():
        ours, theirs = (each(input_ids=ids).logits[:, :-1].log_softmax(-1) for each in (model, teacher))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def merged_model(found: Any, trained: str, *, rounded: bool) -> Any:
    """The model that the result makes of the student, as stored or as exported."""
    model = cut_model(shallow().bfloat16().float())
    values = exported(model)
    weights = found.merged if trained == "lora" else found.parameters
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stored = weights.get(name, parameter).to(torch.bfloat16)
            parameter.copy_(values.values[name](stored) if rounded and name in values.values else stored.float())
    return model


@pytest.mark.parametrize("trained", ["full", "lora", "norms+last:1"])
def test_the_losses_are_those_of_what_is_exported(trained: str, tmp_path: Path) -> None:
    found = go(tmp_path, trained=trained, epochs=3, learning_rate=1e-2)
    record = found.record
    assert record.recovery_for == "q4_0"
    assert record.held_out_loss < record.held_out_loss_before
    assert record.held_out_loss == pytest.approx(loss_of(merged_model(found, trained, rounded=True)), abs=1e-5)
    stored = loss_of(merged_model(found, trained, rounded=False))
    assert record.held_out_loss_stored == pytest.approx(stored, abs=1e-5)
    assert abs(stored - record.held_out_loss) > 1e-3


def test_the_gradient_is_taken_at_the_rounded_weights_and_moves_the_exact_ones() -> None:
    model = shallow()
    train_parameters(model, ("full",), LAYERS)
    own = dict(model.named_parameters())
    before = {name: value.detach().clone() for name, value in own.items()}
    weights = ExportedWeights(model, own, exported(model))
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(own[name], coarse(before[name].bfloat16()))
    norm = "model.layers.0.input_layernorm.weight"
    assert torch.equal(own[norm], before[norm].bfloat16().float())
    ids = random_text().input_ids[:2]
    model(input_ids=ids, labels=ids).loss.backward()
    reference = shallow()
    with torch.no_grad():
        for key, parameter in reference.named_parameters():
            parameter.copy_(own[key])
    reference(input_ids=ids, labels=ids).loss.backward()
    for key, parameter in reference.named_parameters():
        torch.testing.assert_close(own[key].grad, parameter.grad)
    weights.take()
    assert torch.equal(own[name], before[name])
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    weights.put()
    grad = own[name].grad
    assert grad is not None
    assert torch.equal(own[name], coarse((before[name] - grad).bfloat16()))


def test_an_adapters_gradient_is_that_of_the_merged_weight() -> None:
    model = shallow()
    options = settings(trained="lora", targets=["down_proj"])
    own = dict(model.named_parameters())
    add_lora(model, options)
    name = "model.layers.1.mlp.down_proj"
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(0, 0.3)
    weights = ExportedWeights(model, own, exported(shallow()))
    merged = weights.merged()[f"{name}.weight"]
    assert torch.equal(own[f"{name}.weight"], coarse(merged))
    ids = random_text().input_ids[:2]
    model(input_ids=ids, labels=ids).loss.backward()
    plain = shallow()
    with torch.no_grad():
        for key, parameter in plain.named_parameters():
            parameter.copy_(own[key])
    plain(input_ids=ids, labels=ids).loss.backward()
    whole = plain.get_submodule(name).weight.grad
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    scale = layer.scaling["default"]
    torch.testing.assert_close(first.grad, scale * second.T @ whole, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(second.grad, scale * whole @ first.T, atol=1e-6, rtol=1e-4)


def test_weights_are_rounded_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    rounded = ExportedWeights.put

    def counted(self: Any, **how: Any) -> None:
        calls.append(1)
        rounded(self, **how)

    monkeypatch.setattr(ExportedWeights, "put", counted)
    found = go(tmp_path, trained="full", micro_batch_size=1, save_steps=4)
    # Once at the start, after each step, for the best checkpoint, and twice for the loss before it is quantised.
    assert len(calls) == found.record.steps + 4


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_activation_checkpointing_changes_nothing(trained: str, tmp_path: Path) -> None:
    plain, saving = (go(tmp_path / str(i), trained=trained, checkpointing=bool(i)).losses for i in (0, 1))
    torch.testing.assert_close(torch.tensor(saving), torch.tensor(plain), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_resumed_equals_uninterrupted(trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = go(tmp_path / "whole", trained=trained, save_steps=2)
    ends = StepOnExact.on_optimizer_step

    def killed(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt
        ends(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(StepOnExact, "on_optimizer_step", killed)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "part", trained=trained, save_steps=2)
    again = go(tmp_path / "part", trained=trained, save_steps=2)
    assert again.record.resumed_from_step == 4
    assert again.record.held_out_losses == whole.record.held_out_losses
    for name, value in whole.parameters.items():
        assert torch.equal(again.parameters[name], value), name


def test_solved_weights_are_rounded_as_well(tmp_path: Path) -> None:
    model = cut_model(shallow())
    name = "model.layers.0.mlp.down_proj.weight"
    repaired = shallow().get_parameter(name).detach().bfloat16()
    found = train(
        model,
        LiveTeacher(shallow()),
        random_text(),
        settings(trained="lora", learning_rate=1e-9),
        tmp_path,
        layers=LAYERS[:2],
        exported=exported(model),
        solved={name: repaired},
    )
    assert found.record.held_out_loss_solved < found.record.held_out_loss_before
    torch.testing.assert_close(found.merged[name], repaired)


def test_dropout_is_refused() -> None:
    with pytest.raises(RequestError, match="set recovery_lora_dropout to 0"):
        settings(for_="q4_0", dropout=0.1)
