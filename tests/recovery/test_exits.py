"""Early exits in a recovery: what they compute, their loss, and what they learn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optimum_ishrink import IShrinkConfig, IShrinker, RequestError
from optimum_ishrink.modeling.early_exit import first_layers
from optimum_ishrink.recovery.exits import exit_states, parts_called
from optimum_ishrink.recovery.loss import parse_loss
from optimum_ishrink.recovery.observe import Observed, observe
from optimum_ishrink.recovery.student import Student, count_tokens
from optimum_ishrink.recovery.teacher import LiveTeacher
from tests.helpers.recovery_runs import recover
from tests.helpers.small_recovery import go, random_text, shallow
from tests.helpers.tiny import tiny_config, tiny_model

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "olmo2"])
def test_an_exit_is_what_generate_drafts_with(model_type: str) -> None:
    model = tiny_model(tiny_config(model_type))
    with torch.inference_mode(), parts_called(model) as called:
        seen = observe(model, IDS, layers=True)
        states = exit_states(model, seen, called, [1, 3])
    for count, state in zip((1, 3), states, strict=True):
        with torch.inference_mode(), first_layers(model, count):
            torch.testing.assert_close(state, model.base_model(IDS).last_hidden_state)


def test_a_class_without_a_last_norm_is_refused() -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(model_type="odd"))
    seen = Observed(torch.zeros(1, 2, 4), tuple, (torch.zeros(1, 2, 4),))
    assert exit_states(model, seen, [], []) == []
    with pytest.raises(RequestError, match="the class of odd changes hidden states after its last layer and norm"):
        exit_states(model, seen, [(model, torch.ones(1, 2, 4))], [1])


def _losses(exits: tuple[int, ...], weight: float = 1.0, loss: str = "ce:2+kl") -> dict[str, float]:
    model = tiny_model(tiny_config("llama"))
    teacher = LiveTeacher(tiny_model(tiny_config("llama"), seed=3))
    student = Student(model, parse_loss(loss), teacher, exits=exits, exit_weight=weight)
    found = student(IDS, IDS, torch.arange(2), count_tokens(IDS))
    return dict(zip(student.names, found.tolist(), strict=True))


def test_the_loss_is_the_whole_models_and_that_of_each_exit() -> None:
    plain, found = _losses(()), _losses((1, 3), 0.5)
    assert list(found) == ["loss", "ce", "kl", "exit_1", "exit_3"]
    assert found["ce"] == pytest.approx(plain["ce"])
    assert plain["loss"] == pytest.approx(2 * plain["ce"] + plain["kl"])
    whole = plain["loss"] + 0.5 * (found["exit_1"] + found["exit_3"]) / 2
    assert found["loss"] == pytest.approx(whole)


def test_the_loss_at_an_exit_is_that_of_the_model_that_ends_there() -> None:
    model = tiny_model(tiny_config("llama"))
    teacher = LiveTeacher(tiny_model(tiny_config("llama"), seed=3))
    with first_layers(model, 2):
        student = Student(model, parse_loss("ce:2+kl"), teacher)
        ends = student(IDS, IDS, torch.arange(2), count_tokens(IDS))[0].item()
    assert _losses((2,))["exit_2"] == pytest.approx(ends, rel=1e-5)


def test_an_exit_learns(tmp_path: Path) -> None:
    text = random_text(windows=6, held_out=2)
    how = {"text": text, "epochs": 20, "learning_rate": 1e-2, "trained": "full", "loss": "kl"}
    found = go(tmp_path, model=shallow(), teacher=LiveTeacher(shallow()), early_exit=(1,), **how)
    assert found.losses[-1] < 0.8 * found.losses[0]  # all of it the exit's: the whole model is its own teacher
    ((count, before, after),) = found.record.early_exits
    assert count == 1
    assert before > 0.1 and after > 0
    assert go(tmp_path / "plain", text=text).record.early_exits is None


def test_requests_that_are_refused(small: Path, flags: list[str], tmp_path: Path, capsys: Any) -> None:
    for words, message in (
        (["--recovery-early-exit", "9"], "an early exit after 9 layers is not within this model of"),
        (["--recovery-early-exit", "1", "--recovery", "hidden"], "compares no logits; add kl or ce"),
        (["--recovery-early-exit", "0"], "recovery_early_exit must be"),
    ):
        assert recover(small, tmp_path / "out", flags, *words) == 2
        assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_exits_without_a_recovery_are_refused(llama_folder: Path) -> None:
    shrinker = IShrinker.from_pretrained(llama_folder)
    with pytest.raises(RequestError, match="recovery_early_exit is trained in a recovery"):
        shrinker.plan(num_hidden_layers=3, recovery_early_exit=(1,), check_all=True)
    with pytest.raises(RequestError, match="after 3 layers is not within this model of 3"):
        shrinker.plan(num_hidden_layers=3, recovery_early_exit=(3,), recovery="kl", check_all=True)
    assert IShrinkConfig(recovery_early_exit="1,2").recovery_early_exit == (1, 2)
