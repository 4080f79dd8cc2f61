"""Training on tiny models: what is trained, how, and which weights are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from optimum_ishrink import RequestError
from optimum_ishrink.recovery.teacher import LiveTeacher
from optimum_ishrink.recovery.trainable import add_lora
from optimum_ishrink.recovery.training import micro_batch
from optimum_ishrink.recovery.training_text import TrainingWindows
from optimum_ishrink.recovery.work_folder import checkpoints
from tests.helpers.small_recovery import cut_model, go, random_text, settings, shallow
from tests.helpers.tiny import tiny_config, tiny_model


@pytest.mark.parametrize("loss", ["kl", "hidden", "attention", "ce+kl:0.5+hidden:0.1"])
def test_every_loss_falls_on_the_text_itself(loss: str, tmp_path: Path) -> None:
    one = random_text(windows=6, held_out=2)
    found = go(tmp_path, loss=loss, text=one, epochs=10, learning_rate=1e-2)
    assert found.losses[-1] < 0.9 * found.losses[0]
    assert len(found.losses) == found.record.steps == 10
    assert found.record.held_out_loss == min(value for _, value in found.record.held_out_losses)


@pytest.mark.parametrize(
    ("trained", "names"),
    [
        ("lora", "lora_"),
        ("norms", "norm"),
        ("head", "lm_head"),
        ("last:2", r"model.layers.[23]\."),
        ("norms+last:1+head", r"norm|model.layers.3\.|lm_head"),
        ("full", ""),
    ],
)
def test_only_what_was_named_is_trained(trained: str, names: str, tmp_path: Path) -> None:
    import re

    model = cut_model(tiny_model(tiny_config("llama")))
    before = {name: value.clone() for name, value in model.named_parameters()}
    found = go(tmp_path, model=model, trained=trained, text=random_text(12))
    assert {name for name, p in model.named_parameters() if re.search(names, name)} == set(found.parameters)
    after = dict(model.named_parameters())
    for name, value in before.items():
        name = name if name in after else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(after[name], value) is (name not in found.parameters), name
    assert not (set(found.parameters) & set(before)) if trained == "lora" else set(found.parameters) <= set(before)


def test_a_bfloat16_model_is_trained_in_float32(tmp_path: Path) -> None:
    for trained in ("lora", "norms+last:1"):
        model = cut_model(tiny_model(tiny_config("llama"))).bfloat16()
        teacher = LiveTeacher(tiny_model(tiny_config("llama")).bfloat16())
        text = random_text(12)
        found = go(tmp_path / trained, teacher, model=model, text=text, trained=trained, learning_rate=1e-5)
        parameters = dict(model.named_parameters())
        assert {parameters[name].dtype for name in found.parameters} == {torch.float32}
        assert {p.dtype for name, p in parameters.items() if name not in found.parameters} == {torch.bfloat16}
        # Steps this small would be lost in bfloat16.
        moved = [value for name, value in found.parameters.items() if "lora_A" not in name]
        assert all((value != value.bfloat16().float()).any() for value in moved if value.abs().sum() > 0)


def test_activation_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain, saving = (go(tmp_path / str(i), text=random_text(16), checkpointing=bool(i)) for i in (0, 1))
    torch.testing.assert_close(torch.tensor(saving.losses), torch.tensor(plain.losses), atol=1e-5, rtol=1e-5)


def test_batches_may_be_divided_as_memory_asks(tmp_path: Path) -> None:
    text = random_text(16)
    text.labels[:, :7] = -100
    text.labels[::3] = -100
    curves = [go(tmp_path / str(n), text=text, loss="ce+kl", micro_batch_size=n).losses for n in (1, 2, 4)]
    for curve in curves[1:]:
        torch.testing.assert_close(torch.tensor(curve), torch.tensor(curves[0]), atol=1e-4, rtol=1e-4)


def test_it_warms_up_and_decays(tmp_path: Path) -> None:
    rates = go(tmp_path, text=random_text(windows=124, length=4), save_steps=100).learning_rates
    assert len(rates) == 30
    assert rates.index(max(rates)) == 2
    assert max(rates) == pytest.approx(5e-3)
    assert rates[-1] < 1e-4
    assert list(rates[2:]) == sorted(rates[2:], reverse=True)


def test_the_best_checkpoint_is_kept_and_training_stops_early(tmp_path: Path) -> None:
    # Text of noise: what helps on some of it hurts on the rest.
    found = go(tmp_path, loss="ce", learning_rate=0.05, save_steps=1, patience=2, epochs=4)
    assert found.record.steps == found.record.best_step + 2 < found.record.planned_steps
    assert {path.name for path in checkpoints(tmp_path)} == {
        f"checkpoint-{found.record.best_step}",
        f"checkpoint-{found.record.steps}",
    }
    model = cut_model(shallow())
    add_lora(model, settings())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in found.parameters:
                parameter.copy_(found.parameters[name])
        text = random_text()
        ids = text.input_ids[text.trained :]
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(found.record.held_out_loss, abs=1e-5)


def test_the_order_of_windows_is_fixed_from_the_start() -> None:
    text = random_text()
    one, other = (TrainingWindows(text, 3, seed) for seed in (1, 2))
    assert len(one) == 96
    assert torch.equal(one.order, TrainingWindows(text, 3, 1).order)
    assert not torch.equal(one.order, other.order)
    for epoch in one.order.split(32):
        assert sorted(epoch.tolist()) == list(range(32))
    assert not torch.equal(one.order[:32], one.order[32:64])


def test_steps_are_shared_evenly() -> None:
    assert [micro_batch(8, most, processes) for most, processes in ((4, 1), (3, 1), (8, 2), (99, 1))] == [4, 2, 4, 8]
    with pytest.raises(RequestError, match="8 windows cannot be shared by 3 processes.*a multiple of 3"):
        micro_batch(8, 4, 3)
