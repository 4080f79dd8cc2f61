"""A GPU is kept busy: Python launches as much for many tokens as for few, and waits for no token."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink.core.micro_batch import MicroBatch
from optimum_ishrink.recovery.loss import parse_loss
from optimum_ishrink.recovery.student import Student, count_tokens
from optimum_ishrink.recovery.teacher import LiveTeacher
from optimum_ishrink.recovery.teacher_cache import CachedTeacher, write_teacher_cache
from optimum_ishrink.recovery.trainable import add_lora
from optimum_ishrink.recovery.trainer import RecoveryTrainer
from optimum_ishrink.text.sampling import sample_text
from tests.helpers.launched import WAITS, Launched
from tests.helpers.small_recovery import cut_model, go, random_text, settings, shallow
from tests.helpers.tiny import tiny_tokenizer

OF_A_PASS = 1
"""Waits of one forward pass of one model: transformers looks whether sequences are packed, before the first layer."""


def step(student: Student, windows: int, length: int) -> Counter[str]:
    """Run one micro-batch forward and backward, and return what was launched."""
    ids = torch.randint(3, 250, (windows, length), generator=torch.Generator().manual_seed(0))
    counts = count_tokens(ids).float()
    student.zero_grad()
    with Launched() as launched:
        student(ids, ids, torch.arange(windows), counts)[0].backward()
    return launched.operations


@pytest.mark.parametrize("loss", ["kl", "ce+reverse-kl:0.5", "jsd"])
def test_a_step_launches_as_much_for_many_tokens_as_for_few(loss: str) -> None:
    model = cut_model(shallow())
    add_lora(model, settings())
    student = Student(model, parse_loss(loss), LiveTeacher(shallow())).train()
    step(student, 1, 8)
    few, many = step(student, 2, 16), step(student, 8, 64)
    assert few.total() == many.total()
    assert few[WAITS] == many[WAITS] <= 2 * OF_A_PASS


def test_a_step_with_stored_predictions_waits_for_nothing(tmp_path: Path) -> None:
    model = cut_model(shallow())
    add_lora(model, settings())
    text = random_text(8)
    micro = MicroBatch(4, model.device, what="the teacher", remedy="")
    write_teacher_cache(tmp_path / "cache", LiveTeacher(shallow(), k=4), text.input_ids, micro=micro, rows=99)
    student = Student(model, parse_loss("kl"), CachedTeacher(tmp_path / "cache")).train()
    few, many = step(student, 2, 16), step(student, 8, 16)
    assert few.total() == many.total()
    assert few[WAITS] == many[WAITS] <= OF_A_PASS


def test_a_part_of_a_step_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training_step, launched = RecoveryTrainer.training_step, Launched()

    def watched(*args: Any, **named: Any) -> torch.Tensor:
        with launched:
            found: torch.Tensor = training_step(*args, **named)
        return found

    monkeypatch.setattr(RecoveryTrainer, "training_step", watched)
    go(tmp_path, text=random_text(20), batch_size=8, micro_batch_size=2)
    assert launched.operations.total() > 1000
    assert launched.operations[WAITS] <= 2 * 4 * 2 * OF_A_PASS  # steps, parts and models


def test_sampling_launches_as_much_for_many_windows_and_looks_every_32_tokens() -> None:
    model, found = shallow(), []
    for windows in (2, 8):
        with Launched() as launched:
            sample_text(model, tiny_tokenizer(), 64, windows, seed=0)
        found.append(launched.operations)
    assert found[0].total() == found[1].total()
    assert found[0][WAITS] <= 64 // 32 * 2
