"""Several teachers: how they are written, the mixture that they teach, and the runs that have them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import IShrinkConfig, RequestError
from optimum_ishrink.recovery.losses.kl import kl
from optimum_ishrink.recovery.mixed_teacher import MixedTeacher
from optimum_ishrink.recovery.targets import Targets, TopK
from optimum_ishrink.recovery.teacher import LiveTeacher
from optimum_ishrink.recovery.teacher_cache import CachedTeacher
from optimum_ishrink.recovery.teacher_choice import choose_teacher
from optimum_ishrink.recovery.teachers import NamedTeacher, describe_teachers, parse_teachers, without_folders
from tests.helpers.recovery_runs import changed, recover, recovered
from tests.helpers.small_recovery import go, random_text, settings, shallow
from tests.helpers.tiny import save_tiny, tiny_config, tiny_model

ROWS = slice(0, 30)


def another() -> Any:
    return tiny_model(tiny_config("llama", num_hidden_layers=2), seed=5)


def taught(teacher: Any) -> Any:
    return teacher.teach(random_text().input_ids[:2], torch.arange(2)).distribution(ROWS)


def test_teachers_as_they_are_written(tmp_path: Path) -> None:
    assert parse_teachers("org/a") == (NamedTeacher("org/a", 1.0),)
    assert parse_teachers("org/a, b") == (NamedTeacher("org/a", 0.5), NamedTeacher("b", 0.5))
    assert parse_teachers("org/a:3,b:1") == (NamedTeacher("org/a", 0.75), NamedTeacher("b", 0.25))
    odd = tmp_path / "a,b:c"
    odd.mkdir()
    assert parse_teachers(str(odd)) == (NamedTeacher(str(odd)),)
    assert without_folders(str(odd)) == "a,b:c"
    assert without_folders(f"{tmp_path},org/a") == f"{tmp_path.name},org/a"
    names = ("a", "b")
    assert describe_teachers(parse_teachers("a,b"), names) == "a and b"
    assert describe_teachers(parse_teachers("a:0.7,b:0.3"), names) == "0.7 a + 0.3 b"


def test_urls_have_a_colon_of_their_own() -> None:
    assert [(each.name, each.weight) for each in parse_teachers("s3://b/x:1,hf://o/y:3")] == [
        ("s3://b/x", 0.25),
        ("hf://o/y", 0.75),
    ]
    assert [each.name for each in parse_teachers("s3://b/x")] == ["s3://b/x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,,b", "recovery_teacher 'a,,b' has a teacher without a name; write A,B or A:0.7,B:0.3"),
        ("a:0.7,b", "teacher 'b' has no weight, and others have; give all of them one, or none: A:0.7,B:0.3"),
        ("a:0,b:1", "the weight of teacher 'a' must be a positive number, not '0': a:0.5"),
        ("s3://me:hunter2@bucket/a:1,b:1", "holds a password or a query"),
        ("a:x", "the weight of teacher 'a' must be a positive number, not 'x': a:0.5"),
    ],
)
def test_teachers_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        IShrinkConfig(recovery_teacher=text)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_mixture_is_the_mean_of_probabilities(temperature: float) -> None:
    models = [shallow(), another()]
    mixed = taught(MixedTeacher([LiveTeacher(model) for model in models], [0.7, 0.3], temperature=temperature))
    apart = [(taught(LiveTeacher(model)) / temperature).softmax(-1) for model in models]
    torch.testing.assert_close((mixed / temperature).softmax(-1), 0.7 * apart[0] + 0.3 * apart[1])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_two_identical_teachers_teach_what_one_does(temperature: float) -> None:
    model, student = shallow(), taught(LiveTeacher(another()))
    how = {"temperature": temperature}
    for k in (None, 8):
        one = taught(LiveTeacher(model, k=k, **how))
        two = taught(MixedTeacher([LiveTeacher(model), LiveTeacher(model)], [0.6, 0.4], k=k, **how))
        found = [kl(student, Targets(torch.zeros(30), each, temperature)).mean() for each in (one, two)]
        torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-6)
        assert isinstance(two, TopK) == (k is not None)


def test_two_identical_teachers_train_as_one(tmp_path: Path) -> None:
    teachers = MixedTeacher([LiveTeacher(shallow()), LiveTeacher(shallow())], [0.5, 0.5])
    one, two = go(tmp_path / "one"), go(tmp_path / "two", teachers)
    torch.testing.assert_close(torch.tensor(two.losses), torch.tensor(one.losses), atol=1e-6, rtol=1e-5)


def test_the_top_k_of_a_mixture_is_stored_like_that_of_a_teacher(tmp_path: Path) -> None:
    text = random_text(8)
    how = settings(top_k=8, epochs=2, teacher="a:0.7,b:0.3")
    models, device = (shallow(), another()), torch.device("cpu")
    found = choose_teacher(lambda: models, how, text, tmp_path / "cache", 3, device=device)
    live = choose_teacher(lambda: models, how, text, None, 3, device=device)
    assert isinstance(found, CachedTeacher) and isinstance(live, MixedTeacher) and live.rows == 300
    stored, fresh = (each.teach(text.input_ids[:2], torch.arange(2)).distribution for each in (found, live))
    assert stored is not None and fresh is not None
    torch.testing.assert_close(stored(ROWS).log_tail, fresh(ROWS).log_tail)
    assert torch.equal(stored(ROWS).indices, fresh(ROWS).indices)


def test_a_run_with_two_teachers(
    small: Path, flags: list[str], llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags, "--no-evaluate"]
    copy = shutil.copytree(llama_folder, tmp_path / "copy")
    assert recover(small, tmp_path / "one", words) == 0
    assert recover(small, tmp_path / "two", changed(words, teacher=f"{llama_folder}:0.7,{copy}:0.3")) == 0
    one, two = (recovered(tmp_path / name) for name in ("one", "two"))
    assert two["teacher"] == f"0.7 {llama_folder.name} + 0.3 copy" and one["teacher"] is None
    curves = [torch.tensor(facts["held_out_losses"]) for facts in (one, two)]
    torch.testing.assert_close(curves[1], curves[0], atol=1e-6, rtol=1e-5)

    larger = save_tiny(tmp_path / "larger", tiny_config("llama", vocab_size=310))
    assert recover(small, tmp_path / "out", changed(words, teacher=f"{llama_folder},{larger}")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{llama_folder.name} and larger have different tokenizers (300 and 310 rows)" in error
    assert (
        recover(small, tmp_path / "out", changed(words, teacher=f"{llama_folder},{copy}"), "--recovery", "hidden") == 2
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the loss 'hidden' compares layers, and of several teachers only the predictions" in error
