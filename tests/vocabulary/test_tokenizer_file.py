from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from optimum_ishrink.errors import SourceError
from optimum_ishrink.vocabulary.tokenizer_file import read_tokenizer_file
from tests.helpers.tokenizer_kinds import KINDS, save_kind, tokenizer_of

NAMES = {
    "byte-level": "byte-level BPE",
    "byte-level, ignores merges": "byte-level BPE",
    "added in the middle": "byte-level BPE",
    "byte fallback, like Llama 2": "BPE with byte fallback",
    "byte fallback, like Gemma": "BPE with byte fallback",
    "unigram": "Unigram",
    "unigram with fallback": "Unigram",
    "characters": "BPE of characters",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_told_and_its_tokens_are_the_librarys(kind: str, tmp_path: Path) -> None:
    file = read_tokenizer_file(save_kind(kind, tmp_path))
    tokenizer = tokenizer_of(kind)
    assert file.kind == NAMES[kind]
    assert {token: i for i, token in enumerate(file.tokens) if token is not None} == tokenizer.get_vocab()
    assert file.ignores_merges == (kind == "byte-level, ignores merges")
    assert file.has_byte_fallback == ("fallback" in kind)
    assert {file.tokens[i] for i in file.special} == {t.content for t in _added(tokenizer) if t.special}
    assert len(file.scores) == (len(file.vocabulary) if "unigram" in kind else 0)
    for (left, right), merged in zip(file.merges.tolist(), file.merged.tolist()):
        assert (file.tokens[left] or "") + (file.tokens[right] or "") == file.tokens[merged]


def _added(tokenizer: Tokenizer) -> list[Any]:
    return list(tokenizer.get_added_tokens_decoder().values())


def test_an_older_file_names_no_type(tmp_path: Path) -> None:
    path = save_kind("byte-level", tmp_path) / "tokenizer.json"
    contents = json.loads(path.read_text())
    del contents["model"]["type"], contents["added_tokens"]
    path.write_text(json.dumps(contents))
    file = read_tokenizer_file(tmp_path)
    assert (file.kind, len(file.added)) == ("byte-level BPE", 0)


def test_a_byte_level_normalizer_counts(tmp_path: Path) -> None:
    path = save_kind("byte-level", tmp_path) / "tokenizer.json"
    contents = json.loads(path.read_text())
    contents["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}]}
    contents["pre_tokenizer"] = None
    path.write_text(json.dumps(contents))
    assert read_tokenizer_file(tmp_path).kind == "byte-level BPE"


def test_a_folder_with_slow_files_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(SourceError, match="has no tokenizer.json, and only that file's vocabulary can be cut; write"):
        read_tokenizer_file(tmp_path)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (models.WordPiece({"[UNK]": 0}), "a WordPiece model"),
        (models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"), "a WordLevel model"),
        (models.BPE({"a": 0}, [], end_of_word_suffix="</w>"), "a BPE model with end_of_word_suffix"),
        (models.BPE({"a": 0}, [], continuing_subword_prefix="##"), "a BPE model with continuing_subword_prefix"),
        (models.BPE({"a": 0}, [], dropout=0.1), "a BPE model with dropout"),
    ],
)
def test_other_models_are_refused(model: Any, what: str, tmp_path: Path) -> None:
    Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(SourceError, match=f"holds {what}, whose vocabulary cannot be cut; BPE .* and Unigram can"):
        read_tokenizer_file(tmp_path)


@pytest.mark.parametrize("contents", [[], {}, {"model": []}, {"model": {"type": "BPE"}}])
def test_other_files_are_refused(contents: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents))
    with pytest.raises(SourceError, match="is not a file of the tokenizers library; restore it"):
        read_tokenizer_file(tmp_path)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]},
        {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [7]},
        {"type": "BPE", "vocab": ["a"], "merges": []},
        {"type": "Unigram", "vocab": {"a": 0}},
    ],
)
def test_damaged_files_are_refused(model: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(SourceError, match=r"tokenizer.json is damaged \(.*\); restore it from the base model"):
        read_tokenizer_file(tmp_path)


def test_added_tokens_have_the_ids_that_the_library_gives_them(tmp_path: Path) -> None:
    contents = json.loads(tokenizer_of("byte-level").to_str())
    contents["added_tokens"].append({**contents["added_tokens"][0], "id": 709, "content": "<|end|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents))
    with pytest.raises(SourceError, match=r"adds the token '<\|end\|>' as id 709, and it is read as 700; write"):
        read_tokenizer_file(tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id("<|end|>") == 700
