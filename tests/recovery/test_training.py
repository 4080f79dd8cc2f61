"""Training on tiny models: what is trained, what is saved, what stops it, and that it resumes exactly."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from optimum_ishrink import RequestError
from optimum_ishrink.errors import NotFiniteError, OutputError, TrainingError
from optimum_ishrink.recovery import training as run
from optimum_ishrink.recovery.teacher import LayerMap, LiveTeacher
from optimum_ishrink.recovery.teacher_cache import CachedTeacher
from optimum_ishrink.recovery.trainable import add_lora, train_parameters
from optimum_ishrink.recovery.trained_parts import parse_trained
from optimum_ishrink.recovery.trainer import RecoveryTrainer
from optimum_ishrink.recovery.training import choose_teacher, micro_batch, train
from optimum_ishrink.recovery.training_text import TrainingWindows
from optimum_ishrink.recovery.work_folder import checkpoints, open_work
from tests.helpers.small_recovery import LAYERS, cut_model, random_text, settings
from tests.helpers.tiny import tiny_config, tiny_model


def go(folder: Path, teacher: Any = None, *, model: Any = None, text: Any = None, **changes: Any) -> Any:
    """Recover a tiny cut model; the same call gives the same result."""
    model = model if model is not None else cut_model(tiny_model(tiny_config("llama")))
    teacher = teacher or LiveTeacher(tiny_model(tiny_config("llama")), layers=True, values=True)
    return train(
        model,
        teacher,
        text or random_text(),
        settings(**changes),
        folder,
        layers=LAYERS,
        layer_map=LayerMap.even(4, 4),
    )


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


# Stopping and going on.


class Crash(TrainerCallback):  # type: ignore[misc]
    """Stands for a machine that stops in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("changes", [{"dropout": 0.3}, {"trained": "full"}, {"epochs": 2, "micro_batch_size": 1}])
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**changes, "save_steps": 2, "text": random_text(28)}
    whole = go(tmp_path / "whole", **changes)
    whole_bar = run.ShowProgress
    for crash in (3, 5):
        monkeypatch.setattr(run, "ShowProgress", lambda crash=crash: _with(whole_bar(), Crash(crash)))
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "parts", **changes)
        assert [path.name for path in checkpoints(tmp_path / "parts")][-1] == f"checkpoint-{crash - 1}"
    monkeypatch.setattr(run, "ShowProgress", whole_bar)
    torch.rand(5)  # another process has another random state
    again = go(tmp_path / "parts", **changes)
    assert again.record.resumed_from_step == 4
    assert again.losses == whole.losses
    assert again.record.held_out_losses == whole.record.held_out_losses
    assert all(torch.equal(again.parameters[name], value) for name, value in whole.parameters.items())


def _with(bar: Any, crash: Crash) -> Any:
    bar.on_pre_optimizer_step = crash.on_pre_optimizer_step
    return bar


def test_sigterm_saves_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = run.ShowProgress

    class Signal(original):  # type: ignore[misc, valid-type]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run, "ShowProgress", Signal)
    with pytest.raises(
        TrainingError, match="stopped by SIGTERM after step 3 of 8; the same command resumes from there"
    ):
        go(tmp_path / "parts")
    assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.setattr(run, "ShowProgress", original)
    again, whole = go(tmp_path / "parts"), go(tmp_path / "whole")
    assert again.record.resumed_from_step == 3
    assert all(torch.equal(again.parameters[name], value) for name, value in whole.parameters.items())


def test_the_best_checkpoint_is_kept_and_training_stops_early(tmp_path: Path) -> None:
    # Text of noise: what helps on some of it hurts on the rest.
    found = go(tmp_path, loss="ce", learning_rate=0.05, save_steps=1, patience=2, epochs=4)
    assert found.record.steps == found.record.best_step + 2 < found.record.planned_steps
    assert {path.name for path in checkpoints(tmp_path)} == {
        f"checkpoint-{found.record.best_step}",
        f"checkpoint-{found.record.steps}",
    }
    model = cut_model(tiny_model(tiny_config("llama")))
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


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny_model(tiny_config("llama"))
    live = LiveTeacher(teacher)
    calls = 0
    original = live.teach

    def teach(input_ids: torch.Tensor, windows: torch.Tensor) -> Any:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == 11:  # the first half of the sixth step
            with torch.no_grad():
                teacher.lm_head.weight[5] = float("nan")
        return original(input_ids, windows)

    monkeypatch.setattr(live, "teach", teach)
    with pytest.raises(TrainingError, match=r"NaN or infinite at step 6; the checkpoint of step 4 is in"):
        go(tmp_path, live)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]
    with pytest.raises(
        NotFiniteError, match=r"loss on the held-out recovery text .* before the first step \(loss nan"
    ):
        go(tmp_path / "other", LiveTeacher(teacher))


def test_no_room_for_a_checkpoint_keeps_the_last_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimum_ishrink.recovery import trainer

    original = trainer.save_tensors
    written = 0

    def fill(path: Path, tensors: Any) -> None:
        nonlocal written
        written += 1
        if written == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(path, tensors)

    monkeypatch.setattr(trainer, "save_tensors", fill)
    with pytest.raises(OutputError, match="No space left on device; free some space .*: it resumes from step 4"):
        go(tmp_path)
    assert [path.name for path in sorted(tmp_path.glob("*check*"))] == ["checkpoint-4"]
    again = go(tmp_path)
    assert again.record.resumed_from_step == 4


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail] . PytorchStreamWriter failed writing file",
        "basic_ios::clear: iostream error",
        "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0",
    ],
)
def test_torchs_own_words_for_a_full_disk(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(run.RecoveryTrainer, "_save_optimizer_and_scheduler", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        go(tmp_path)
    monkeypatch.setattr(run.RecoveryTrainer, "_save_optimizer_and_scheduler", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        go(tmp_path)


# The working folder.


def test_the_work_of_another_request_is_refused(tmp_path: Path) -> None:
    open_work(tmp_path / "w", {"model": "z", "seed": 0})
    # Nothing is lost yet, so another request may take over.
    open_work(tmp_path / "w", {"model": "a", "seed": 0, "long": "x" * 99})
    (tmp_path / "w" / "checkpoint-3").mkdir()
    open_work(tmp_path / "w", {"model": "a", "seed": 0, "long": "x" * 99})
    with pytest.raises(RequestError, match=r"of another request: model \(\"a\" there, \"b\" now\).*delete the folder"):
        open_work(tmp_path / "w", {"model": "b", "seed": 0, "long": "x" * 99})
    (tmp_path / "w" / "request.json").write_text("{")
    with pytest.raises(RequestError, match="of another request"):
        open_work(tmp_path / "w", {"seed": 0})


def test_halves_of_checkpoints_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-4.partial").mkdir()
    (tmp_path / "checkpoint-2").mkdir()
    open_work(tmp_path, {"seed": 0})
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    assert not (tmp_path / "checkpoint-4.partial").exists()


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


# The teacher's words from disk.


@pytest.mark.parametrize("k", [8, 1000])
def test_the_cache_gives_the_same_curve(k: int, tmp_path: Path) -> None:
    text, teacher = random_text(16), tiny_model(tiny_config("llama"))
    changes: dict[str, Any] = {"top_k": k, "epochs": 2, "temperature": 1.5}
    how = settings(**changes)
    live = go(tmp_path / "live", LiveTeacher(teacher, k=k, temperature=1.5), text=text, **changes)
    cached = choose_teacher(teacher, how, text, tmp_path / "cache", 3)
    assert isinstance(cached, CachedTeacher)
    found = go(tmp_path / "cached", cached, text=text, **changes)
    torch.testing.assert_close(torch.tensor(found.losses), torch.tensor(live.losses), atol=1e-3, rtol=1e-3)
    sizes = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.npy"))
    assert sizes == 16 * 15 * (6 * min(k, 300) + 4) + 3 * 128
    if k >= 300:
        whole = go(tmp_path / "whole", LiveTeacher(teacher), text=text, epochs=2, temperature=1.5)
        torch.testing.assert_close(torch.tensor(found.losses), torch.tensor(whole.losses), atol=1e-3, rtol=1e-3)


def test_the_cache_is_filled_once_and_only_where_it_says_all(tmp_path: Path) -> None:
    text, teacher = random_text(), tiny_model(tiny_config("llama"))
    assert choose_teacher(None, settings(), text, tmp_path / "c", 4) is None
    assert choose_teacher(teacher, settings(loss="ce"), text, tmp_path / "c", 4) is None
    assert isinstance(choose_teacher(teacher, settings(), text, tmp_path / "c", 4), LiveTeacher)
    both = settings(loss="kl+hidden:0.1", top_k=4, epochs=2)
    assert not both.caches_teacher
    assert isinstance(choose_teacher(teacher, both, text, tmp_path / "c", 4), LiveTeacher)
    assert not (tmp_path / "c").exists()
    choose_teacher(teacher, settings(top_k=4), text, tmp_path / "c", 4)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    choose_teacher(teacher, settings(top_k=4), text, tmp_path / "c", 4)
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    assert json.loads((tmp_path / "c" / "shape.json").read_text()) == {"windows": 36, "length": 16, "k": 4}
    assert settings(top_k=4, epochs=2).caches_teacher
    assert settings(top_k=4, cache=str(tmp_path)).caches_teacher
    assert not settings(top_k=4).caches_teacher
    assert not settings(epochs=2).caches_teacher


# What is trained.


def test_parts_are_parsed() -> None:
    assert parse_trained("norms + last:2") == ("norms", "last:2")
    with pytest.raises(RequestError, match="last:9 layers were requested for training; the model has 4"):
        train_parameters(tiny_model(tiny_config("llama")), ("last:9",), LAYERS)


def test_targets_that_are_not_there() -> None:
    with pytest.raises(RequestError, match="unknown LoRA target 'q_prj' .did you mean 'q_proj'"):
        add_lora(tiny_model(tiny_config("llama")), settings(rank=2, alpha=4, targets=["q_prj"]))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3", "qwen3_moe"])
def test_an_adapter_starts_at_nothing_or_where_it_is_told(model_type: str) -> None:
    ids = torch.arange(3, 12)[None]
    how = settings(rank=3, alpha=5, seed=1)
    model = tiny_model(tiny_config(model_type))
    wanted = model(ids).logits
    add_lora(model, how)
    torch.testing.assert_close(model(ids).logits, wanted)
    state = torch.random.get_rng_state()
    again = tiny_model(tiny_config(model_type))
    reader = {"llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "phi3": "mlp.down_proj"}.get(
        model_type, "self_attn.o_proj"
    )
    name = f"{'transformer.h' if model_type == 'gpt2' else 'model.layers'}.1.{reader}.weight"
    weight = again.get_parameter(name)
    delta = torch.randn(weight.shape[0], 2).double() @ torch.randn(2, weight.shape[1]).double()
    moved = tiny_model(tiny_config(model_type))
    with torch.no_grad():
        moved.get_parameter(name).add_(delta)
    add_lora(again, how, start={name: delta})
    torch.testing.assert_close(again(ids).logits, moved(ids).logits, atol=1e-4, rtol=1e-4)
    torch.random.set_rng_state(state)


def test_a_damaged_model_is_named_before_the_first_step(tmp_path: Path) -> None:
    model = cut_model(tiny_model(tiny_config("llama")))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"the model to recover gives NaN .*, first in model.layers.1.mlp"):
        go(tmp_path, model=model)
    assert not checkpoints(tmp_path)


def test_a_held_out_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RecoveryTrainer.held_out_loss

    def held_out_loss(self: Any) -> dict[str, float]:
        found = original(self)
        return {**found, "loss": float("nan")} if self.state.global_step else found

    monkeypatch.setattr(RecoveryTrainer, "held_out_loss", held_out_loss)
    with pytest.raises(TrainingError, match=r"the held-out loss became NaN or infinite after step 4; try a lower"):
        go(tmp_path)
