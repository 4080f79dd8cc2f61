"""Learning from a teacher with more tokens: its distribution carried over, and all that training promises."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from optimum_ishrink import IShrinker
from optimum_ishrink.recovery import preparation, stage
from optimum_ishrink.recovery import training as run
from optimum_ishrink.recovery.loss import parse_loss
from optimum_ishrink.recovery.losses.kl import kl
from optimum_ishrink.recovery.student import Student, count_tokens
from optimum_ishrink.recovery.targets import IGNORED, Targets, TopK
from optimum_ishrink.recovery.teacher import LayerMap, LiveTeacher
from optimum_ishrink.recovery.teacher_cache import CachedTeacher
from optimum_ishrink.recovery.teacher_choice import choose_teacher
from optimum_ishrink.recovery.teacher_text import TeacherText
from optimum_ishrink.recovery.training import train
from optimum_ishrink.recovery.training_text import RecoveryText, recovery_text
from optimum_ishrink.recovery.translating_teacher import IMPOSSIBLE, TranslatingTeacher
from optimum_ishrink.text.token_map import TokenMap
from tests.helpers.recovery_runs import recover, recovered
from tests.helpers.small_recovery import LAYERS, cut_model, random_text, settings
from tests.helpers.tiny import VOCAB, tiny_config, tiny_model
from tests.helpers.torchrun import torchrun
from tests.helpers.word_tokens import FIRST_MERGED, WORDS, rows_without, save_words, trimmed_model, trimmed_pair

GONE = range(FIRST_MERGED + 1, VOCAB, 2)
ROWS = rows_without(GONE)
PAIR = trimmed_pair(GONE)


DEPTH, CPU = 2, torch.device("cpu")


def base(variant: int = 0) -> Any:
    return tiny_model(tiny_config("llama", variant, num_hidden_layers=DEPTH))


def student(variant: int = 0) -> Any:
    return trimmed_model(base(variant), ROWS)


@pytest.fixture(scope="module")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    some = WORDS.split()
    path.write_text("\n".join(" ".join(some[(i * j) % len(some)] for j in range(2, 12)) for i in range(200)))
    return path


@pytest.fixture(scope="module")
def text(words_file: Path) -> RecoveryText:
    options = settings(data=(str(words_file),), tokens=640)
    found = recovery_text(options, PAIR.tokenizer, sample=lambda _: pytest.fail("nothing is sampled"), pair=PAIR)
    assert found.teacher is not None and (~found.teacher.shared).sum() > 50
    return found


def translating(text: RecoveryText, model: Any = None, **how: Any) -> TranslatingTeacher:
    assert text.teacher is not None
    return TranslatingTeacher(LiveTeacher(model or base(), **how), text.teacher, PAIR.map)


def loss_of(model: Any, teacher: Any, ids: torch.Tensor, windows: torch.Tensor, loss: str = "kl", **how: Any) -> Any:
    layers = LayerMap.even(DEPTH, DEPTH)
    return Student(model, parse_loss(loss), teacher, layers, **how)(ids, ids, windows, count_tokens(ids))


# The loss of a step.


@pytest.mark.parametrize(("temperature", "block"), [(1.0, 7), (2.0, 3), (1.0, 1)])
def test_the_loss_is_the_carried_divergence_and_within_tokens_the_cross_entropy(
    text: RecoveryText, temperature: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimum_ishrink.modeling.head.BLOCK", block * len(ROWS))
    windows = torch.tensor([3, 0, 5])
    ids = text.input_ids[windows]
    assert text.teacher is not None
    taught = text.teacher[windows]
    model, teacher = student().requires_grad_(False), base()  # a head that is not trained is compared in blocks
    found = loss_of(model, translating(text, teacher), ids, windows, temperature=temperature, chunk=7 * len(ROWS))
    total = torch.zeros(())
    with torch.no_grad():
        p_logits, q_logits = teacher(taught.input_ids).logits, model(ids).logits
        for row in range(3):
            for at in range(15):
                q = (q_logits[row, at] / temperature).log_softmax(-1)
                if (position := int(taught.positions[row, at])) < 0:
                    total -= q_logits[row, at].log_softmax(-1)[ids[row, at + 1]]
                    continue
                p = torch.zeros(len(ROWS))
                p.index_add_(0, PAIR.map.carried, p_logits[row, position].softmax(-1))
                p = (p.log() / temperature).log_softmax(-1)
                total += temperature**2 * (p.exp() * (p - q)).sum()
    assert found[0].item() == pytest.approx(total.item() / 45, rel=1e-4)


@given(st.integers(0, 99), st.lists(st.booleans(), min_size=6, max_size=6), st.sampled_from([0.5, 1.0]))
def test_within_a_token_the_gradient_is_that_of_the_cross_entropy(
    seed: int, predicted: list[bool], temperature: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 13, generator=generator).requires_grad_()
    teacher, following = torch.randn(6, 13, generator=generator), torch.randint(0, 13, (6,), generator=generator)
    known = torch.tensor(predicted)
    targets = Targets(following, teacher[known], temperature, following.masked_fill(known, IGNORED))
    values = kl(logits, targets)
    whole = kl(logits, Targets(following, teacher, temperature))
    within = torch.nn.functional.cross_entropy(logits, following, reduction="none")
    expected = torch.where(known, whole, within)
    torch.testing.assert_close(values, expected)
    ours, theirs = (torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (values, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("k", [None, 5])
def test_where_nothing_was_removed_it_is_the_ordinary_loss(k: int | None) -> None:
    text, windows = random_text(8), torch.tensor([1, 4])
    ids = text.input_ids[windows]
    lengths = torch.ones(VOCAB, dtype=torch.int64)
    same = TeacherText(text.input_ids, torch.arange(16).expand(8, 16))
    live = LiveTeacher(base(), k=k, layers=True)
    translated = TranslatingTeacher(live, same, TokenMap(torch.arange(VOCAB), lengths, lengths))
    one, other = (loss_of(cut_model(base()), teacher, ids, windows, "kl+hidden:0.1") for teacher in (live, translated))
    torch.testing.assert_close(other, one)


def test_there_is_a_distribution_for_each_shared_position(text: RecoveryText) -> None:
    lesson = translating(text).teach(text.input_ids[:2], torch.arange(2))
    assert lesson.distribution is not None and lesson.shared is not None
    carried = lesson.distribution(slice(0, 30))
    assert isinstance(carried, torch.Tensor)
    assert carried.shape == (int(lesson.shared.sum()), len(ROWS))
    torch.testing.assert_close(carried.exp().sum(-1), torch.ones(len(carried)))
    assert torch.equal(carried, lesson.distribution(slice(0, 30)))


def test_rows_that_nothing_is_carried_to_are_impossible(text: RecoveryText) -> None:
    assert text.teacher is not None
    more = TokenMap(PAIR.map.carried, PAIR.map.base_lengths, torch.cat([PAIR.map.lengths, torch.zeros(3).long()]))
    teacher = TranslatingTeacher(LiveTeacher(base()), text.teacher, more)
    lesson = teacher.teach(text.input_ids[:2], torch.arange(2))
    assert lesson.distribution is not None and teacher.rows == len(ROWS) + 3
    carried = lesson.distribution(slice(0, 9))
    assert isinstance(carried, torch.Tensor)
    assert (carried[:, -3:] == IMPOSSIBLE).all()
    logits = torch.randn(len(carried), teacher.rows, requires_grad=True)
    values = kl(logits, Targets(torch.zeros(len(carried)).long(), carried, 0.5))
    assert values.isfinite().all()
    assert torch.autograd.grad(values.sum(), logits)[0].isfinite().all()


def test_the_top_k_is_of_what_was_carried(text: RecoveryText) -> None:
    ids, windows = text.input_ids[:2], torch.arange(2)
    whole, top = (translating(text, k=k).teach(ids, windows).distribution for k in (None, 6))
    assert whole is not None and top is not None
    carried, found = whole(slice(3, 25)), top(slice(3, 25))
    assert isinstance(carried, torch.Tensor) and isinstance(found, TopK)
    assert torch.equal(found.indices, carried.topk(6).indices)
    torch.testing.assert_close(found.log_probs, carried.topk(6).values)
    torch.testing.assert_close(found.log_probs.exp().sum(-1) + found.log_tail.exp(), torch.ones(len(carried)))


def test_hidden_states_are_compared_where_both_have_read_the_same(text: RecoveryText) -> None:
    windows = torch.tensor([2, 7])
    ids = text.input_ids[windows]
    assert text.teacher is not None
    taught = text.teacher[windows]
    found = loss_of(student(), translating(text, layers=True, logits=False), ids, windows, "hidden")
    ours = student()(ids, output_hidden_states=True).hidden_states[1:]
    theirs = base()(taught.input_ids, output_hidden_states=True).hidden_states[1:]
    total = sum(
        ((own[row, at] - other[row, position]).square().mean() / other[row, position].square().mean()).item()
        for own, other in zip(ours, theirs, strict=True)
        for row in range(2)
        for at in range(15)
        if (position := int(taught.positions[row, at])) >= 0
    )
    assert found[0].item() == pytest.approx(total / DEPTH / 30, rel=1e-4)


# Training.


def go(folder: Path, text: RecoveryText, teacher: Any = None, *, variant: int = 0, **changes: Any) -> Any:
    how = settings(**changes)
    teacher = teacher or translating(text, base(variant), layers=how.reads("hidden_states"))
    layers = LayerMap.even(DEPTH, DEPTH)
    return train(student(variant), teacher, text, how, folder, layers=LAYERS[:DEPTH], layer_map=layers)


@pytest.mark.parametrize(
    ("loss", "trained"),
    [
        ("kl", "embeddings"),
        pytest.param("kl", "lora", marks=pytest.mark.slow),
        ("kl+hidden:0.1", "full"),
        pytest.param("ce", "embeddings", marks=pytest.mark.slow),
    ],
)
def test_training_lowers_the_held_out_loss(text: RecoveryText, loss: str, trained: str, tmp_path: Path) -> None:
    found = go(tmp_path, text, loss=loss, trained=trained, epochs=4)
    assert found.record.held_out_loss < 0.9 * found.record.held_out_loss_before
    assert found.adds


@pytest.mark.parametrize(("variant", "names"), [(0, {"model.embed_tokens", "lm_head"}), (1, {"model.embed_tokens"})])
def test_embeddings_are_the_input_and_the_head(
    text: RecoveryText, variant: int, names: set[str], tmp_path: Path
) -> None:
    found = go(tmp_path, text, variant=variant, trained="embeddings")
    assert {name.removesuffix(".weight") for name in found.parameters} == names
    more = go(tmp_path / "more", text, variant=variant, trained="embeddings+norms")
    assert found.parameters.keys() < more.parameters.keys()


def test_batches_may_be_divided_as_memory_asks(text: RecoveryText, tmp_path: Path) -> None:
    curves = [go(tmp_path / str(n), text, loss="ce+kl", micro_batch_size=n).losses for n in (1, 4)]
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), atol=1e-4, rtol=1e-4)


def test_a_run_that_was_stopped_ends_with_the_same_weights(
    text: RecoveryText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"trained": "embeddings", "save_steps": 2}
    whole = go(tmp_path / "whole", text, **changes)

    def crash(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.ShowProgress, "on_pre_optimizer_step", crash)
        go(tmp_path / "parts", text, **changes)
    again = go(tmp_path / "parts", text, **changes)
    assert again.record.resumed_from_step == 2
    assert again.losses == whole.losses
    assert again.record.held_out_losses == whole.record.held_out_losses
    assert all(torch.equal(again.parameters[name], value) for name, value in whole.parameters.items())


def test_the_cache_gives_the_same_curve(text: RecoveryText, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"top_k": 8, "epochs": 2, "temperature": 1.5}
    live = go(tmp_path / "live", text, translating(text, k=8, temperature=1.5), **changes)
    how = settings(**changes)
    cached = choose_teacher(lambda: (base(),), how, text, tmp_path / "cache", 3, PAIR.map, device=CPU)
    assert isinstance(cached, CachedTeacher)
    found = go(tmp_path / "cached", text, cached, **changes)
    torch.testing.assert_close(torch.tensor(found.losses), torch.tensor(live.losses), atol=1e-3, rtol=1e-3)
    live = choose_teacher(lambda: (base(),), settings(), text, None, 3, PAIR.map, device=CPU)
    assert isinstance(live, TranslatingTeacher)


# The whole way, from a request to a folder.


def how_to_recover(words_file: Path, **changes: Any) -> dict[str, Any]:
    return {
        "recovery_data": [str(words_file)],
        "recovery_tokens": 700,
        "recovery_length": 16,
        "recovery_batch_size": 4,
        "recovery_learning_rate": 1e-2,
        "evaluate": False,
        "benchmark": False,
        **changes,
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny base with words, and the same with a trimmed vocabulary."""
    parent = tmp_path_factory.mktemp("trimmed")
    whole = save_words(parent / "whole", tiny_config("llama", 1))
    small = parent / "small"
    trimmed_model(base(1), ROWS).save_pretrained(small)
    PAIR.tokenizer.save_pretrained(small)
    return whole, small


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[RecoveryText]:
    """Every text that a run tokenises."""
    read: list[RecoveryText] = []

    def remember(*given: Any, **how: Any) -> RecoveryText:
        read.append(recovery_text(*given, **how))
        return read[-1]

    for module in (preparation, stage):
        monkeypatch.setattr(module, "recovery_text", remember)
    return read


@pytest.mark.parametrize("source", ["words", "self"])
def test_a_trimmed_model_is_recovered_from_its_base(
    folders: tuple[Path, Path], words_file: Path, source: str, texts: list[RecoveryText], tmp_path: Path
) -> None:
    whole, small = folders
    data = ["self"] if source == "self" else [str(words_file)]
    found = IShrinker.from_pretrained(small, dtype="float32", device="cpu").recover(
        **how_to_recover(words_file, recovery_data=data),
        recovery="kl",
        recovery_train="embeddings",
        recovery_teacher=str(whole),
        save_directory=tmp_path / "out",
    )
    record = found.report.recovery
    assert record is not None and record.held_out_loss < record.held_out_loss_before
    tensors, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", small))
    assert tensors.keys() == before.keys() and "lm_head.weight" not in tensors
    changed = {name for name in before if not torch.equal(tensors[name], before[name])}
    assert changed == {"model.embed_tokens.weight"}
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (small / "tokenizer.json").read_bytes()
    assert len(texts) == (2 if source == "self" else 1) and texts[-1].teacher is not None


@pytest.mark.parametrize(
    ("loss", "teacher"),
    [
        ("kl", None),
        pytest.param("kl", "another", marks=pytest.mark.slow),
        pytest.param("ce", None, marks=pytest.mark.slow),
    ],
)
def test_a_shrink_that_trims_is_recovered_from_its_base(
    folders: tuple[Path, Path],
    words_file: Path,
    loss: str,
    teacher: str | None,
    texts: list[RecoveryText],
    tmp_path: Path,
) -> None:
    whole = str(folders[0]) if teacher is None else str(save_words(tmp_path / "t", tiny_config("llama"), seed=5))
    found = IShrinker.from_pretrained(folders[0], dtype="float32", device="cpu").shrink(
        **how_to_recover(words_file, recovery_data=[*(["self"] if teacher else []), str(words_file)]),
        vocab_size=280,
        vocab_multiple=1,
        calibration=str(words_file),
        calibration_samples=8,
        calibration_length=16,
        recovery=loss,
        recovery_train="embeddings",
        recovery_teacher=None if teacher is None else whole,
        save_directory=tmp_path / "out",
    )
    record = found.report.recovery
    assert record is not None and record.held_out_loss < record.held_out_loss_before
    assert load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"].shape[0] == 280
    # The text that was read before the vocabulary was cut has ids of rows that are gone.
    assert len(texts) == 2 and int(texts[1].input_ids.max()) < 280
    assert (texts[1].teacher is None) == (loss == "ce")


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(folders: tuple[Path, Path], words_file: Path, tmp_path: Path) -> None:
    whole, small = folders
    words = f"""
        --teacher {whole} --recovery-data self,{words_file} --recovery-tokens 700 --recovery-length 16
        --recovery-save-steps 2 --recovery-batch-size 4 --batch-size 2 --recovery kl+ce:0.1 --recovery-train embeddings
        --recovery-learning-rate 0.001 --no-evaluate --no-benchmark --dtype float32 --device cpu
    """.split()
    assert recover(small, tmp_path / "one", words) == 0
    command = [*torchrun(), "recover", "--model", str(small), "--output", str(tmp_path / "two"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (recovered(tmp_path / name) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    curves = [torch.tensor(facts["held_out_losses"]) for facts in (one, two)]
    torch.testing.assert_close(curves[1], curves[0], atol=1e-3, rtol=1e-3)


def test_the_same_tokens_take_the_ordinary_way() -> None:
    text = random_text(8)
    assert text.teacher is None and len(text.tensors) == 2
    assert isinstance(choose_teacher(lambda: (base(),), settings(), text, None, 2, device=CPU), LiveTeacher)
    lesson = LiveTeacher(base()).teach(text.input_ids[:2], torch.arange(2))
    assert lesson.shared is None
