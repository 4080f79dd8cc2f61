from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from optimum_ishrink.vocabulary.rewrite import trimmed_contents
from optimum_ishrink.vocabulary.splits import Splits, find_splits
from optimum_ishrink.vocabulary.tokenizer_file import TokenizerFile, read_tokenizer_file
from tests.helpers.tokenizer_kinds import KINDS, save_kind, tokenizer_of


def read(tokenizer: Tokenizer, folder: Path) -> TokenizerFile:
    tokenizer.save(str(folder / "tokenizer.json"))
    return read_tokenizer_file(folder)


@pytest.fixture(scope="module", params=[kind for kind in KINDS if "unigram" not in kind])
def merging(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, TokenizerFile]:
    folder = save_kind(request.param, tmp_path_factory.mktemp("kind"))
    return tokenizer_of(request.param), read_tokenizer_file(folder)


def test_a_token_is_reachable_where_the_library_makes_it_of_its_string(merging: tuple[Any, TokenizerFile]) -> None:
    tokenizer, file = merging
    contents = json.loads(tokenizer.to_str())
    contents["model"]["ignore_merges"] = False
    model = Tokenizer.from_str(json.dumps(contents)).model
    splits = find_splits(file)
    for token, number in file.vocabulary.items():
        found = [piece.id for piece in model.tokenize(token)]
        byte = token.startswith("<0x")
        assert splits.reachable[number] == (found == [number] or byte), token
        if splits.left[number] >= 0:
            left, right = (file.tokens[i] or "" for i in (splits.left[number], splits.right[number]))
            assert left + right == token
        elif len(found) > 1 and not byte:
            assert splits.pieces_of_leaves[number] == len(found)


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabularies of three letters whose merges are in any order, several of them for one token."""
    tokens = ["a", "b", "c"]
    for _ in range(draw(st.integers(1, 12))):
        token = draw(st.sampled_from(tokens)) + draw(st.sampled_from(tokens))
        if token not in tokens and len(token) < 12:
            tokens.append(token)
    pairs = [
        (token[:i], token[i:])
        for token in tokens
        for i in range(1, len(token))
        if token[:i] in tokens and token[i:] in tokens
    ]
    kept = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs and draw(st.booleans()) else pairs
    return {token: number for number, token in enumerate(tokens)}, draw(st.permutations(kept))


@settings(max_examples=100)
@given(
    made=vocabularies(),
    words=st.lists(st.text("abc", min_size=1, max_size=14), min_size=1, max_size=5),
    data=st.data(),
)
def test_any_merges_whose_tokens_stay_make_the_same_tokens(
    made: tuple[dict[str, int], list[tuple[str, str]]],
    words: list[str],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    vocabulary, merges = made
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=merges)).model
    base = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=data.draw(st.booleans())))
    file = read(base, tmp_path_factory.mktemp("random"))
    splits = find_splits(file)
    for token, number in vocabulary.items():
        assert splits.reachable[number] == ([piece.id for piece in plain.tokenize(token)] == [number])
    before = [base.encode(word).ids for word in words]
    more = data.draw(st.sets(st.sampled_from(range(len(vocabulary)))))
    rows = splits.close({number for ids in before for number in ids} | more)
    small = Tokenizer.from_str(json.dumps(trimmed_contents(file, rows)))
    for word, ids in zip(words, before):
        assert rows[small.encode(word).ids].tolist() == ids
    # The merges that were left out would never be applied, in any text.
    contents = json.loads(small.to_str())
    names = {file.tokens[row] for row in rows}
    contents["model"]["merges"] = [merge for merge in merges if names >= {*merge, "".join(merge)}]
    with_all = Tokenizer.from_str(json.dumps(contents))
    for word in (word for word in words if names >= {*word}):
        assert with_all.encode(word).ids == small.encode(word).ids


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenizerFile, Splits]:
    """Two merges make `abc`: `ab` has the lower rank, so that `a` and `bc` never meet."""
    vocabulary = {token: number for number, token in enumerate(["a", "b", "c", "ab", "bc", "abc", "abcabc", "cb"])}
    merges = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c"), ("abc", "abc")]
    file = read(Tokenizer(models.BPE(vocab=vocabulary, merges=merges)), tmp_path_factory.mktemp("worked"))
    return file, find_splits(file)


def test_the_parts_are_those_that_the_merge_order_passes_through(worked: tuple[TokenizerFile, Splits]) -> None:
    _, splits = worked
    assert splits.parts(5) == {0, 1, 2, 3}
    assert splits.parts(6) == {0, 1, 2, 3, 5}
    assert splits.parts(0) == frozenset()
    assert splits.close([4]).tolist() == [1, 2, 4]
    assert splits.close([]).tolist() == []
    assert splits.close([3, 9]).tolist() == [0, 1, 3, 9]  # 9 is a row without a token
    assert splits.left.tolist() == [-1, -1, -1, 0, 1, 3, 5, -1]
    assert splits.sizes.tolist() == [1, 1, 1, 2, 2, 3, 6, 2]


def test_what_no_merge_makes_is_unreachable_and_needs_nothing(worked: tuple[TokenizerFile, Splits]) -> None:
    _, splits = worked
    assert splits.reachable.tolist() == [True] * 7 + [False]
    assert splits.parts(7) == frozenset()
    assert splits.pieces_of_leaves[7] == 2


def test_a_removed_token_becomes_the_pieces_of_its_parts(worked: tuple[TokenizerFile, Splits]) -> None:
    _, splits = worked
    kept = np.ones(8, dtype=bool)
    kept[[5, 6]] = False
    assert splits.pieces(kept).tolist() == [1, 1, 1, 1, 1, 2, 4, 1]
    assert splits.split(6, kept) == [3, 2, 3, 2]
    kept[3] = False
    assert splits.pieces(kept)[6] == 6
    assert splits.split(6, kept) == [0, 1, 2, 0, 1, 2]


def test_unigram_needs_no_parts_and_estimates_the_likeliest(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("a", -3.0), ("b", -3.0), ("ab", -4.0), ("aba", -5.0), ("ba", -6.5), ("zzz", -9.0)]
    splits = find_splits(read(Tokenizer(models.Unigram(pieces, unk_id=0)), tmp_path))
    assert splits.parts(4) == frozenset()
    assert splits.close([4]).tolist() == [4]
    assert (splits.left[4], splits.right[4]) == (3, 1)
    kept = np.array([True, True, True, False, False, True, False])
    assert splits.pieces(kept).tolist() == [1, 1, 1, 2, 3, 1, 3]


def test_a_removed_character_becomes_its_bytes(tmp_path: Path) -> None:
    file = read_tokenizer_file(save_kind("byte fallback, like Gemma", tmp_path))
    splits = find_splits(file)
    kept = np.ones(len(splits.left), dtype=bool)
    number = next(i for token, i in file.vocabulary.items() if token == "—")
    kept[number] = False
    assert splits.pieces(kept)[number] == 3
