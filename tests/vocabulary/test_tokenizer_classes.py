"""Trimmed tokenizers under the classes of transformers, several of which build themselves anew from the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from optimum_ishrink.vocabulary.required import find_required
from optimum_ishrink.vocabulary.rewrite import write_trimmed_tokenizer
from optimum_ishrink.vocabulary.splits import find_splits
from optimum_ishrink.vocabulary.tokenizer_file import read_tokenizer_file
from tests.helpers.tokenizer_kinds import closed_rows, save_kind, sentencepiece_model

TEXT = "The letter a, number 97.</s> Naïve “quotes” — Страна 本\n\n  x"

CASES = [
    ("byte-level", "GPT2Tokenizer", True),
    ("byte-level", "Qwen2Tokenizer", False),
    ("byte-level", "GPTNeoXTokenizer", False),
    ("byte-level", "CohereTokenizer", True),
    ("byte-level, ignores merges", "PreTrainedTokenizerFast", False),
    ("added in the middle", "GPT2Tokenizer", True),
    ("added in the middle", "Qwen2Tokenizer", True),
    ("byte fallback, like Llama 2", "LlamaTokenizer", True),
    ("byte fallback, like Llama 2", "LlamaTokenizerFast", False),
    ("byte fallback, like Gemma", "GemmaTokenizer", True),
    ("byte fallback, like Gemma", "GemmaTokenizer", False),
    ("unigram", "LlamaTokenizer", False),
    ("unigram", "XGLMTokenizer", False),
    ("unigram with fallback", "T5Tokenizer", False),
]


def add_slow_files(kind: str, folder: Path) -> set[str]:
    """Write the files of the kind's slow tokenizer, and return their names."""
    if "fallback" in kind:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model("bpe", True, 1600))
        return {"tokenizer.model"}
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
    return {"vocab.json", "merges.txt"}


@pytest.mark.parametrize(("kind", "name", "slow_files"), CASES)
def test_every_class_reads_the_same_tokens(kind: str, name: str, slow_files: bool, tmp_path: Path) -> None:
    source = save_kind(kind, tmp_path / "base")
    written = add_slow_files(kind, source) if slow_files else set()
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": name}))
    large: Any = AutoTokenizer.from_pretrained(source)
    file = read_tokenizer_file(source)
    splits = find_splits(file)
    rows = closed_rows(splits, find_required(file, splits, large), large(TEXT)["input_ids"], 0, 0.1)
    (tmp_path / "small").mkdir()
    assert write_trimmed_tokenizer(source, tmp_path / "small", rows) == []
    assert written <= {path.name for path in (tmp_path / "small").iterdir()}
    for fast in (True, False):
        small: Any = AutoTokenizer.from_pretrained(tmp_path / "small", use_fast=fast)
        assert type(small) is type(large)
        assert [rows[i] for i in small(TEXT)["input_ids"]] == large(TEXT)["input_ids"]
        assert small.decode(small(TEXT)["input_ids"]) == large.decode(large(TEXT)["input_ids"])
        # Some classes add special tokens that the file lacks: their rows stay, after those of the file.
        assert {token: rows[i] for token, i in small.get_vocab().items()}.items() <= large.get_vocab().items()
        assert len(small) == len(rows)


def test_tokens_that_the_config_alone_adds_keep_their_rows(tmp_path: Path) -> None:
    source = save_kind("byte-level", tmp_path / "base")
    added = {"content": "<|more|>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"700": {**added, "single_word": False}, "701": {**added, "content": "<|gone|>"}}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "added_tokens.json").write_text(json.dumps({"<|more|>": 700, "<|gone|>": 701}))
    rows = [*range(600), 700]
    (tmp_path / "small").mkdir()
    assert write_trimmed_tokenizer(source, tmp_path / "small", rows) == []
    small = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert small("a<|more|>")["input_ids"][-1] == 600 and len(small) == 601
    assert json.loads((tmp_path / "small" / "added_tokens.json").read_text()) == {"<|more|>": 600}
