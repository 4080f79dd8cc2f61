"""The training text in the tokens of a teacher with more of them: where both have read the same."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from optimum_ishrink import DataError, RequestError
from optimum_ishrink.recovery.targets import IGNORED
from optimum_ishrink.recovery.teacher_text import APART, BothTokens, TeacherText, TokenPair, pair_tokens
from optimum_ishrink.recovery.training_text import pack
from optimum_ishrink.text.sampling import sample_text
from optimum_ishrink.text.windows import window_starts
from optimum_ishrink.vocabulary.rewrite import write_trimmed_tokenizer
from optimum_ishrink.vocabulary.splits import find_splits
from optimum_ishrink.vocabulary.tokenizer_file import read_tokenizer_file
from tests.helpers.tiny import VOCAB, tiny_config, tiny_model, tiny_tokenizer
from tests.helpers.tokenizer_kinds import KINDS, lines, save_kind
from tests.helpers.word_tokens import (
    FIRST_MERGED,
    SPECIAL,
    WORDS,
    rows_without,
    trimmed_pair,
    trimmed_tokenizer,
    word_tokenizer,
)

removed = st.sets(st.integers(FIRST_MERGED, VOCAB - 1), min_size=1)
words = st.lists(st.sampled_from([*WORDS.split(), "Straße", "\n", "ß", "</s>", "<|user|>", " "]), min_size=1)
texts = st.one_of(st.text(min_size=1, max_size=40), words.map(" ".join))


def read(pair: TokenPair, text: str) -> BothTokens:
    both = BothTokens(pair)
    both.add(text)
    return both


def text_of(tokenizer: Any, ids: Any) -> bytes:
    """The bytes that tokens stand for; a special token as itself."""
    special = {tokenizer.convert_tokens_to_ids(token): token.encode() for token in SPECIAL}
    table = {character: byte for byte, character in enumerate(_byte_characters())}
    return b"".join(
        special.get(token) or bytes(table[c] for c in tokenizer.convert_ids_to_tokens(token))
        for token in map(int, ids)
    )


def _byte_characters() -> list[str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    found = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [found[byte] for byte in range(256)]


@settings(max_examples=20)
@given(removed, texts)
def test_shared_positions_are_those_that_have_read_the_same_bytes(gone: set[int], text: str) -> None:
    pair = trimmed_pair(gone)
    both = read(pair, text)
    theirs, positions = both.window(0, len(both.ids))
    assert both.ids == pair.tokenizer(text)["input_ids"]
    assert theirs == pair.teacher(text)["input_ids"]
    read_by_teacher = {text_of(pair.teacher, theirs[: at + 1]): at for at in range(len(theirs))}
    for at, position in enumerate(positions):
        assert read_by_teacher.get(text_of(pair.tokenizer, both.ids[: at + 1]), APART) == position


@settings(max_examples=20)
@given(removed, st.lists(texts, min_size=1, max_size=4), st.integers(0, 2))
def test_windows_start_where_both_have_read_the_same(gone: set[int], documents: list[str], begun: int) -> None:
    pair = trimmed_pair(gone)
    both = BothTokens(pair)
    begin = [1] * begun
    for text in documents:
        both.add(text)
        both.add_tokens([2])
    length = 4 + begun
    inside = length - begun
    try:
        starts = window_starts(both.ids, begin, length, None, label="x", apart=both.starts_apart())
    except Exception as error:  # too short a text
        assert "windows of" in str(error)
        return
    for start in starts:
        theirs, positions = both.window(start, inside, begin)
        ours = [*begin, *both.ids[start : start + inside]]
        assert len(positions) == len(ours)
        for at, position in enumerate(positions):
            if position != APART:
                assert text_of(pair.teacher, theirs[: position + 1]) == text_of(pair.tokenizer, ours[: at + 1])
        assert max(positions, default=-1) == len(theirs) - 1
        assert positions[:begun] == list(range(begun))


def test_a_removed_token_has_no_positions_but_its_last() -> None:
    whole = word_tokenizer()
    pair = trimmed_pair({whole.convert_tokens_to_ids("Ġever")})
    assert whole.tokenize("no ever no") == ["no", "Ġever", "Ġ", "no"]
    pieces = pair.tokenizer.tokenize("no ever no")
    assert pieces == ["no", "Ġ", "ever", "Ġ", "no"]
    assert read(pair, "no ever no").window(0, 5)[1] == [0, APART, 1, 2, 3]
    assert read(pair, "no ever no").starts_apart() == [False, False, True, False, False]


def test_text_of_unknown_length_is_shared_at_its_end_alone() -> None:
    pair = trimmed_pair({VOCAB - 1})
    assert pair.shared([5, 6, 7], [5, 6, 7]) == ([0, 1, 2], [0, 1, 2])
    assert pair.shared([5, 1, 7], [5, 6, 7]) == ([2], [2])
    assert pair.shared([], [5]) == ([], [])


def test_windows_of_several_texts_are_filled_up() -> None:
    one = TeacherText.stack([([5, 6], [0, APART, 1]), ([7], [APART, APART, 0])])
    assert one.input_ids.tolist() == [[5, 6], [7, 0]]
    both = TeacherText.cat([one, TeacherText.stack([([1, 2, 3], [0, 1, 2])])])
    assert both.input_ids.tolist() == [[5, 6, 0], [7, 0, 0], [1, 2, 3]]
    assert both[torch.tensor([1])].input_ids.tolist() == [[7]]
    assert both[torch.tensor([1, 0])].shared.tolist() == [[False, False, True], [True, False, True]]
    nowhere = TeacherText.stack([([], [APART, APART])])
    assert nowhere[torch.tensor([0])].input_ids.tolist() == [[0]]


def test_labels_follow_the_tokens_of_the_student() -> None:
    gone = {word_tokenizer().convert_tokens_to_ids(token) for token in ("Ġever", "over")}
    pair = trimmed_pair(gone)
    documents = [[("<|user|>no over", False), (" ever over", True)] for _ in range(12)]
    ids, labels, teacher = pack(documents, pair.tokenizer, 10, 6, labels="answers", seed=0, label="x", pair=pair)
    assert teacher is not None
    plain = pack(documents, pair.tokenizer, 10, 6, labels="answers", seed=0, label="x")
    assert plain.teacher is None and plain.input_ids.shape == ids.shape
    answers = 0
    for window, marks, theirs, positions in zip(ids, labels, teacher.input_ids, teacher.positions, strict=True):
        assert torch.equal(marks[marks != IGNORED], window[marks != IGNORED])
        for at, position in enumerate(positions.tolist()):
            if position != APART:
                assert text_of(pair.teacher, theirs[: position + 1]) == text_of(pair.tokenizer, window[: at + 1])
        answers += int((marks != IGNORED).sum())
        # The marks of turns and documents stay tokens of their own.
        assert (window == pair.tokenizer.convert_tokens_to_ids("<|user|>")).any()
    assert 0 < answers < labels.numel()
    assert (teacher.positions == APART).any()


# What the teacher samples.


@settings(max_examples=20)
@given(removed, st.lists(st.integers(3, VOCAB - 1), min_size=12, max_size=12), st.integers(0, 2))
def test_what_the_teacher_samples_is_read_by_both(gone: set[int], sampled: list[int], windows: int) -> None:
    pair = trimmed_pair(gone)
    drawn = torch.tensor([[1, *sampled], *[[1, 2, 1, 3, *range(80, 89)]] * windows])
    ids, teacher = pair.read_sampled(drawn)
    assert ids.shape == drawn.shape
    assert (ids < len(pair.tokenizer)).all()
    for window, theirs, positions in zip(ids, teacher.input_ids, teacher.positions, strict=True):
        assert positions[0] == 0 and window[0] == theirs[0] == 1
        for at, position in enumerate(positions.tolist()):
            if position != APART:
                assert text_of(pair.teacher, theirs[: position + 1]) == text_of(pair.tokenizer, window[: at + 1])
    written = "".join(pair.teacher.decode(window) for window in [*drawn, *drawn])
    if "\ufffd" not in written:
        assert written.encode().startswith(text_of(pair.tokenizer, ids[0]))


def test_special_tokens_survive_as_tokens() -> None:
    pair = trimmed_pair({VOCAB - 1, VOCAB - 2})
    # The pieces of "</s>" as text are not the token, and spaces beside the token are not lost.
    pieces = pair.teacher.convert_tokens_to_ids(["<", "/", "s", ">"])
    space = pair.teacher.convert_tokens_to_ids("Ġ")
    drawn = torch.tensor([[1, 3, space, 2, space, 65, 2]])
    ids, teacher = pair.read_sampled(drawn)
    assert ids.tolist() == drawn.tolist() == teacher.input_ids.tolist()
    ids, _ = pair.read_sampled(torch.tensor([[1, *pieces, 2, 3]]))
    assert (ids == pair.tokenizer.eos_token_id).sum() >= 1


def test_a_window_that_ends_within_a_character_goes_on_with_the_next() -> None:
    pair = trimmed_pair({VOCAB - 1})
    begun = pair.teacher.convert_tokens_to_ids("Ã")
    drawn = torch.tensor([[1, 70, 71, begun], [1, 72, 73, 74]])
    ids, teacher = pair.read_sampled(drawn)
    assert ids.tolist() == [[1, 70, 71, 1], [1, 72, 73, 74]] == teacher.input_ids.tolist()


def test_what_is_no_text_is_refused() -> None:
    pair = trimmed_pair({VOCAB - 1})
    begun = pair.teacher.convert_tokens_to_ids("Ã")
    with pytest.raises(DataError, match="what the teacher samples is no text; name a text"):
        pair.read_sampled(torch.tensor([[begun, begun], [begun, begun]]))


def test_sampled_text_of_a_model_is_read_by_both() -> None:
    pair = trimmed_pair(range(FIRST_MERGED, VOCAB, 2))
    drawn = sample_text(tiny_model(tiny_config("llama")), pair.teacher, 24, 4, seed=3).input_ids
    ids, teacher = pair.read_sampled(drawn)
    assert ids.shape == (4, 24)
    assert teacher.shared[:, 0].all()


# Which teachers are allowed.


def test_the_same_tokens_need_no_translation() -> None:
    assert pair_tokens(word_tokenizer(), word_tokenizer(), VOCAB, VOCAB) is None


def test_rows_without_a_token_may_differ() -> None:
    pair = pair_tokens(word_tokenizer(), word_tokenizer(), VOCAB, VOCAB + 20)
    assert pair is not None
    assert read(pair, WORDS).window(0, 9)[1] == list(range(9))
    logits = torch.randn(2, VOCAB + 20)
    torch.testing.assert_close(pair.map.carry(logits), logits[:, :VOCAB].log_softmax(-1))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            trimmed_tokenizer(rows_without({VOCAB - 1})),
            r"it has no token 'Ġever', which the model's has; name a teacher",
        ),
        (
            SimpleNamespace(get_vocab=lambda: {**word_tokenizer().get_vocab(), "a": 299}),
            r"token 'a' has id 299 there and \d+ here, and only fast tokenizers can be translated",
        ),
        (SimpleNamespace(get_vocab=word_tokenizer().get_vocab), "a vocabulary of 310 tokens, the model one of 300"),
        (tiny_tokenizer(), "it has no token '12'"),
    ],
)
def test_a_teacher_with_yet_another_tokenizer_is_refused(teacher: Any, message: str) -> None:
    with pytest.raises(RequestError, match=f"{message}.*the model that this one was cut from$"):
        pair_tokens(word_tokenizer(), teacher, VOCAB, 310)


# Every kind of tokenizer.


@pytest.mark.parametrize("kind", KINDS)
def test_both_read_every_kind_of_text(kind: str, tmp_path: Path) -> None:
    """Wherever both have read the same, what they have read decodes to the same text."""
    folder, small = save_kind(kind, tmp_path / "whole"), tmp_path / "small"
    file = read_tokenizer_file(folder)
    splits = find_splits(file)
    single = np.flatnonzero(splits.left < 0).tolist()
    rows = splits.close([*single, *random.Random(3).sample(range(len(splits.left)), len(splits.left) // 3)]).tolist()
    small.mkdir()
    write_trimmed_tokenizer(folder, small, rows)
    whole, trimmed = (PreTrainedTokenizerFast.from_pretrained(place) for place in (folder, small))
    pair = pair_tokens(trimmed, whole, len(rows), len(splits.left))
    assert pair is not None
    apart = 0
    for text in lines()[::150]:
        both = read(pair, text)
        theirs, positions = both.window(0, len(both.ids))
        assert pair.map.base_lengths[theirs].sum() == pair.map.lengths[both.ids].sum()
        for at, position in enumerate(positions):
            if position != APART:
                assert whole.decode(theirs[: position + 1]) == trimmed.decode(both.ids[: at + 1])
        apart += positions.count(APART)
        assert positions[-1] == len(theirs) - 1
    assert apart > 0
    # What the teacher samples, with marks in it.
    begin, end = whole.bos_token_id, whole.eos_token_id
    sampled = [begin, *whole(lines()[5], add_special_tokens=False)["input_ids"][:20], end, begin]
    ids, _ = pair.read_sampled(torch.tensor([sampled]))
    assert ids[0, 0] == trimmed.bos_token_id
