"""Text that the student samples while it is trained, with the teacher beside it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import IShrinkConfig, RequestError
from optimum_ishrink.recovery import on_policy as module
from optimum_ishrink.recovery import training as run
from optimum_ishrink.recovery.loss import parse_loss
from optimum_ishrink.recovery.mixed_teacher import MixedTeacher
from optimum_ishrink.recovery.on_policy import StudentText
from optimum_ishrink.recovery.sharding import check_sharding
from optimum_ishrink.recovery.student import Student
from optimum_ishrink.recovery.targets import IGNORED
from optimum_ishrink.recovery.teacher import LiveTeacher
from optimum_ishrink.recovery.training import train
from optimum_ishrink.recovery.training_text import RecoveryText, TrainingWindows, recovery_text
from optimum_ishrink.recovery.translating_teacher import TranslatingTeacher
from tests.helpers.recovery_runs import recover, recovered
from tests.helpers.small_recovery import LAYERS, cut_model, random_text, settings, shallow
from tests.helpers.tiny import VOCAB, tiny_tokenizer
from tests.helpers.torchrun import torchrun
from tests.helpers.word_tokens import FIRST_MERGED, WORDS, rows_without, trimmed_model, trimmed_pair

GONE = range(FIRST_MERGED + 1, VOCAB, 2)
PAIR = trimmed_pair(GONE)


def sampler(text: RecoveryText, **changes: Any) -> StudentText:
    return StudentText(settings(**changes), text, tiny_tokenizer())


def batches_of(text: RecoveryText, step: int, micro: int = 4, size: int = 4, **how: Any) -> list[Any]:
    windows = TrainingWindows(text, 1, 0, places=True)
    places = range(step * size, (step + 1) * size)
    rows = [windows[place] for place in places]
    return [
        {name: torch.stack([row[name] for row in rows[at : at + micro]]) for name in rows[0]}
        for at in range(0, size, micro)
    ]


def go(folder: Path, **changes: Any) -> Any:
    text, model = random_text(), cut_model(shallow())
    teacher, own = LiveTeacher(shallow()), sampler(random_text(), **changes)
    return train(model, teacher, text, settings(**changes), folder, layers=LAYERS[:2], on_policy=own)


def test_sampled_windows_take_the_place_of_given_ones() -> None:
    text = random_text()
    own = sampler(text, on_policy=0.5, on_policy_steps=2)
    student = Student(shallow(), parse_loss("kl"), LiveTeacher(shallow()))
    student.train()
    found, given = [], []
    for step in range(text.trained // 4):
        given += batches_of(text, step)
        found += own.replace(batches_of(text, step), student)
    assert student.model.training
    changed = [int(window) >= len(text.input_ids) for batch in found for window in batch["window"]]
    assert sum(changed) == text.trained // 2
    for batch, before in zip(found, given, strict=True):
        assert "place" not in batch
        for row, window in enumerate(batch["window"]):
            same = torch.equal(batch["input_ids"][row], before["input_ids"][row])
            assert same == (int(window) < len(text.input_ids))
            # The prompt is an eighth, and what a student says itself is no label.
            assert torch.equal(batch["input_ids"][row, :2], before["input_ids"][row, :2])
            assert same or bool((batch["labels"][row] == IGNORED).all())


def test_each_process_samples_what_it_trains_on() -> None:
    text = random_text()
    chosen = []
    for process in range(2):
        own = sampler(text, on_policy=0.5)
        own.divide(2, process, 2)
        chosen.append(own._mine)
        assert not own._mine[torch.arange(text.trained) // 2 % 2 != process].any()
    assert int((chosen[0] | chosen[1]).sum()) == text.trained // 2 and not (chosen[0] & chosen[1]).any()


def test_the_student_samples_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    sampled = module.sample_text

    def remember(model: Any, *given: Any, **how: Any) -> Any:
        assert not model.training  # dropout would draw from another model
        seen.append(torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_B" in name]))
        return sampled(model, *given, **how)

    monkeypatch.setattr(module, "sample_text", remember)
    found = go(tmp_path, on_policy=1.0, on_policy_steps=3, lora_dropout=0.1)
    assert len(seen) == -(-found.record.steps // 3)
    assert not seen[0].any() and not torch.equal(seen[1], seen[2])
    assert found.record.on_policy == 1.0 and found.losses[-1] < found.losses[0]


def test_batches_may_be_divided_as_memory_asks(tmp_path: Path) -> None:
    how: dict[str, Any] = {"on_policy": 0.5, "on_policy_steps": 2, "loss": "kl+ce:0.1"}
    curves = [go(tmp_path / str(micro), micro_batch_size=micro, **how).losses for micro in (1, 4)]
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [2, 4])
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of step 2 is at the end of two steps' windows, and amid those of four."""
    changes: dict[str, Any] = {"on_policy": 0.5, "on_policy_steps": steps, "save_steps": 2, "epochs": 2}
    whole = go(tmp_path / "whole", **changes)

    def crash(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.ShowProgress, "on_pre_optimizer_step", crash)
        go(tmp_path / "parts", **changes)
    again = go(tmp_path / "parts", **changes)
    assert again.record.resumed_from_step == 2
    assert again.losses == whole.losses
    assert all(torch.equal(again.parameters[name], value) for name, value in whole.parameters.items())


def test_a_share_of_nothing_changes_nothing(small: Path, flags: list[str], tmp_path: Path) -> None:
    words = [*flags, "--no-evaluate"]
    assert recover(small, tmp_path / "without", words) == 0
    assert recover(small, tmp_path / "zero", words, "--recovery-on-policy", "0") == 0
    without, zero = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("without", "zero"))
    assert without == zero and "on_policy" not in recovered(tmp_path / "zero")
    assert (
        recover(small, tmp_path / "half", words, "--recovery-on-policy", "0.5", "--recovery-on-policy-steps", "3") == 0
    )
    assert recovered(tmp_path / "half")["on_policy"] == 0.5
    assert (tmp_path / "half" / "model.safetensors").read_bytes() != zero


@pytest.mark.slow
def test_two_processes_sample_each_for_itself(small: Path, flags: list[str], tmp_path: Path) -> None:
    words = [*flags, "--no-evaluate", "--recovery-on-policy", "0.5", "--recovery-on-policy-steps", "2"]
    done = [
        subprocess.run(
            [*torchrun(), "recover", "--model", str(small), "--output", str(tmp_path / name), *words],
            capture_output=True,
            text=True,
            check=False,
        )
        for name in ("one", "two")
    ]
    assert all(each.returncode == 0 for each in done), done[0].stderr
    facts = recovered(tmp_path / "one")
    assert facts["processes"] == 2 and facts["on_policy"] == 0.5 and facts["helped"]
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


# A student with fewer tokens.


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> RecoveryText:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    some = WORDS.split()
    path.write_text("\n".join(" ".join(some[(i * j) % len(some)] for j in range(2, 12)) for i in range(200)))
    options = settings(data=(str(path),), tokens=640)
    return recovery_text(options, PAIR.tokenizer, sample=lambda _: pytest.fail("nothing is sampled"), pair=PAIR)


@pytest.mark.parametrize("several", [False, True])
def test_what_a_trimmed_student_samples_is_read_by_its_base(several: bool, text: RecoveryText, tmp_path: Path) -> None:
    assert text.teacher is not None
    whole, rows = shallow(), rows_without(GONE)
    teachers = [TranslatingTeacher(LiveTeacher(whole), text.teacher, PAIR.map) for _ in range(1 + several)]
    teacher = MixedTeacher(teachers, [0.5, 0.5]) if several else teachers[0]
    changes: dict[str, Any] = {"on_policy": 0.5, "on_policy_steps": 2, "trained": "embeddings"}
    own = StudentText(settings(**changes), text, PAIR.tokenizer, pair=PAIR, teacher=teacher)
    model = trimmed_model(shallow(), rows)
    student = Student(model, parse_loss("kl"), teacher)
    (batch,) = own.replace(batches_of(text, 0), student)
    read = teachers[-1].text
    assert len(read.positions) == len(text.input_ids) + len(own._places)
    for ids, window in zip(batch["input_ids"], batch["window"], strict=True):
        places = read.positions[window]
        last = int((places >= 0).nonzero().max())
        ours = PAIR.tokenizer.decode(ids[: last + 1])
        assert ours == PAIR.teacher.decode(read.input_ids[window, : int(places[last]) + 1])
        assert int((places >= 0).sum()) > 4
    found = train(model, teacher, text, settings(**changes), tmp_path, layers=LAYERS[:2], on_policy=own)
    assert found.record.held_out_loss < found.record.held_out_loss_before


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recovery": "ce"}, "recovery='ce' compares with none; add kl, or leave it out"),
        (
            {"recovery_top_k": 8, "recovery_epochs": 2},
            "stored predictions are of the given text; leave out recovery_top_k",
        ),
        (
            {"recovery_top_k": 8, "recovery_cache": "x"},
            "stored predictions are of the given text; leave out recovery_top_k",
        ),
        ({"recovery_on_policy": 1.5}, "recovery_on_policy"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        IShrinkConfig(**{"recovery": "kl", "recovery_on_policy": 0.5, **changes})
    IShrinkConfig(recovery="kl", recovery_on_policy=0.5, recovery_top_k=8)


def test_spread_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(RequestError, match="run it under torchrun without FSDP, or in one process"):
        check_sharding(settings(on_policy=0.5), sparse=False)
    check_sharding(settings(), sparse=False)
