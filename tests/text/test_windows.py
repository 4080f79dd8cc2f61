"""Windows begin with what the tokenizer begins a text with, and then hold the text once, in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.errors import DataError
from optimum_ishrink.evaluation.passages import retokenize, text_windows
from optimum_ishrink.recovery.targets import IGNORED
from optimum_ishrink.recovery.training_text import pack
from optimum_ishrink.text.calibration import calibration_windows, held_out_windows
from optimum_ishrink.text.conversations import MARK
from optimum_ishrink.text.sampling import sample_text
from optimum_ishrink.text.sources import parse_sources
from optimum_ishrink.text.windows import beginning, beginning_name, token_windows
from tests.helpers.beginning import beginning_tokenizer
from tests.helpers.tiny import tiny_config, tiny_model, tiny_tokenizer

ONE, TWO = beginning_tokenizer(), beginning_tokenizer("<pad>", "<s>")
TEXTS = [f"Ferry {i} leaves pier {i * 7 % 13} with {i * 11 % 17} bicycles." for i in range(60)]


def test_what_a_tokenizer_adds_counts_not_what_it_has() -> None:
    assert (beginning(tiny_tokenizer()), beginning_name(tiny_tokenizer())) == ([], None)
    assert (beginning(ONE), beginning_name(ONE)) == ([1], "<s>")
    assert (beginning(TWO), beginning_name(TWO)) == ([0, 1], "<pad><s>")


def test_a_tokenizer_that_writes_text_otherwise_behind_its_token_adds_none() -> None:
    class Odd:
        def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
            return {"input_ids": [7] if add_special_tokens else [8]}

    assert beginning(Odd()) == []


@pytest.mark.parametrize("tokenizer", [ONE, TWO])
def test_calibration_recovery_and_evaluation_read_the_same_windows(tokenizer: Any) -> None:
    begin = beginning(tokenizer)
    stream = [token for text in TEXTS for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]]
    inside = 24 - len(begin)
    wanted = [[*begin, *stream[at : at + inside]] for at in range(0, 10 * inside, inside)]
    assert token_windows(TEXTS, tokenizer, 24, 10, seed=None, label="x").tolist() == wanted
    windows = text_windows(TEXTS, tokenizer, 24, 10, seed=0, label="x")
    drawn = token_windows(TEXTS, tokenizer, 24, 10, seed=0, label="x")
    ids, labels, _ = pack([[(text, False)] for text in TEXTS], tokenizer, 24, 10, labels="text", seed=0, label="x")
    assert windows.ids.tolist() == drawn.tolist() == ids.tolist()
    assert windows.context == len(begin)
    assert windows.passages is not None
    for passage, window in zip(windows.passages, windows.ids, strict=True):
        assert passage.context == ""
        assert retokenize(passage, tokenizer)[0].tolist() == window.tolist()
        assert retokenize(passage, tokenizer)[1] == len(begin)
        bare, context = retokenize(passage, tiny_tokenizer())
        assert bare[context:].tolist() == window[len(begin) :].tolist()
    # What every window begins with is nothing to learn.
    assert (labels[:, : len(begin)] == IGNORED).all()
    assert torch.equal(labels[:, len(begin) :], ids[:, len(begin) :])


def test_answers_keep_their_labels_behind_it() -> None:
    documents = [[("ab", False), ("cd", True)]] * 9
    ids, labels, _ = pack(documents, ONE, 6, 4, labels="answers", seed=0, label="x")
    answered = {*tiny_tokenizer()("cd")["input_ids"], 2}
    assert (ids[:, 0] == 1).all()
    for token, label in zip(ids.flatten().tolist(), labels.flatten().tolist(), strict=True):
        assert label == (token if token in answered else IGNORED)


@given(texts=st.lists(st.text("ab", max_size=9), min_size=1, max_size=30), length=st.integers(2, 9))
def test_windows_hold_the_text_once_and_in_order(texts: list[str], length: int) -> None:
    """A document that begins with BOS, as a chat template writes it, never gives a window a second one."""
    written = [f"<s>{text}" for text in texts]
    stream = [token for text in texts for token in [1, *ONE(text, add_special_tokens=False)["input_ids"], 2]]
    try:
        windows = token_windows(written, ONE, length, None, seed=None, label="x").tolist()
    except DataError as error:
        assert "0 windows" in str(error)
        return
    at = 0
    for window in windows:
        assert window[0] == 1
        assert window[1] != 1
        at += stream[at] == 1
        assert window[1:] == stream[at : at + length - 1]
        at += length - 1
    assert len(stream) - at <= length


def test_windows_without_room_for_text() -> None:
    for call in (
        lambda: token_windows(TEXTS, TWO, 2, 1, seed=0, label="x"),
        lambda: text_windows(TEXTS, TWO, 2, 1, seed=0, label="x"),
    ):
        with pytest.raises(
            DataError, match="windows of 2 tokens have no room for text after the 2 that the tokenizer"
        ):
            call()


def test_held_out_windows_share_no_text_with_calibration(tmp_path: Any) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"{i:05d}" for i in range(400)))
    sources = parse_sources(str(path))
    seen = calibration_windows(sources, None, ONE, samples=5, length=70, seed=1)
    how = {"calibrated": sources, "calibration_samples": 5, "calibration_length": 70, "seed": 1}
    found = held_out_windows(sources, None, ONE, samples=4, length=50, **how)
    last = max(ONE.decode(window[1:].tolist()).split()[-2] for window in seen)
    assert min(ONE.decode(window[1:].tolist()).split()[1] for window in found) > last
    assert (found[:, 0] == 1).all()


@pytest.mark.parametrize(
    ("template", "turn"),
    [
        ("{% for m in messages %}<u>{{ m.content }}{% endfor %}", "<u>"),
        ("{{ bos_token }}{% for m in messages %}<u>{{ m.content }}{% endfor %}", "<u>"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", None),
        ("{% for m in messages %}x{% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
    ],
)
@pytest.mark.parametrize("begins", [True, False])
def test_sampled_windows_begin_with_it_too(template: str, turn: str | None, begins: bool) -> None:
    tokenizer = beginning_tokenizer(template=template)
    if not begins:
        tokenizer.backend_tokenizer.post_processor = None
    windows = sample_text(tiny_model(tiny_config("llama")), tokenizer, 8, 2, seed=0).input_ids
    assert windows[0, 0] == 1
    own = tokenizer(turn or "", add_special_tokens=False)["input_ids"]
    start = ([1] if begins or "bos" in template or turn is None else []) + own
    assert windows[1, : len(start)].tolist() == start
    assert MARK not in tokenizer.decode(windows[1].tolist())
