"""Where a teacher's model is loaded, whole or shared, and when it is let go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.recovery import teacher_models
from optimum_ishrink.recovery.teacher_models import TeacherModels, layer_names
from tests.helpers.recovery_runs import changed, recover
from tests.helpers.tiny import save_tiny, tiny_config


class Place:
    """What is read of a session."""

    def __init__(self) -> None:
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.loaded: Any = None

    @property
    def model(self) -> Any:
        self.loaded = self.loaded or object()
        return self.loaded


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Source, Source]:
    one, two = (save_tiny(tmp_path / name, tiny_config("llama"), seed=seed) for seed, name in enumerate("ab"))
    return open_source(one), open_source(two)


def test_the_first_may_be_the_base_and_others_are_read_once(sources: tuple[Source, Source]) -> None:
    place = Place()
    teachers = TeacherModels(cast(Session, place), sources, is_base=True)
    assert place.loaded is None
    base, other = teachers.all_whole()
    assert base is place.loaded and teachers.whole(1) is other
    assert teachers.in_step() == (base, other)
    teachers.release()
    assert place.loaded is None and teachers.whole(1) is not other
    own = TeacherModels(cast(Session, place), sources[:1], is_base=False)
    place.loaded = "the student"
    assert type(own.whole()).__name__ == "LlamaForCausalLM"
    own.release()
    assert place.loaded == "the student"
    assert TeacherModels(cast(Session, place), (), is_base=False).in_step() == ()


def test_what_runs_in_step_is_shared_and_nothing_whole_is_left(
    sources: tuple[Source, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, shared = Place(), []

    def share_layers(model: Any, layers: tuple[str, ...], device: torch.device) -> Any:
        assert place.loaded is None
        shared.append((layers, device))
        return SimpleNamespace(model=model)

    teachers = TeacherModels(cast(Session, place), sources, is_base=True)
    teachers.whole()
    monkeypatch.setattr(teacher_models, "shares_weights", lambda: True)
    monkeypatch.setattr(teacher_models, "share_layers", share_layers)
    found = teachers.in_step()
    assert shared == [(layer_names(source), place.device) for source in sources]
    assert teachers.in_step() is found and len(found) == 2


def test_stored_predictions_and_text_need_no_teacher(
    small: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*changed(flags, recovery_data="self"), "--no-evaluate", "--recovery-train", "full"]
    stored = ["--recovery-top-k", "8", "--recovery-cache", str(tmp_path / "cache")]
    assert recover(small, tmp_path / "first", words, *stored) == 0
    monkeypatch.setattr(TeacherModels, "whole", lambda *_: pytest.fail("the teacher is read"))
    assert recover(small, tmp_path / "second", words, *stored) == 0
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert one == two
