"""A tiny tokenizer with words in it, the same without some of its tokens, and models with these vocabularies."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from optimum_ishrink.recovery.teacher_text import TokenPair, pair_tokens
from optimum_ishrink.vocabulary.rewrite import trimmed_contents
from optimum_ishrink.vocabulary.splits import find_splits
from optimum_ishrink.vocabulary.tokenizer_file import TokenizerFile, read_tokenizer_file
from tests.helpers.tiny import VOCAB, save_tiny

SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>"]
FIRST_MERGED = len(SPECIAL) + 256
"""Ids below this are special tokens and single bytes."""

_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "model_max_length": 128}
WORDS = "the quick brown fox jumps over lazy dogs while every ship sails at noon; über straße 12 days"


def word_tokenizer(**changes: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with `VOCAB` tokens, some of them words or parts of words."""
    tokenizer = Tokenizer.from_str(_whole())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**_NAMES, **changes})


@cache
def _whole() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    how: dict[str, Any] = {"special_tokens": SPECIAL, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator([WORDS] * 3, trainers.BpeTrainer(vocab_size=VOCAB, **how))
    assert tokenizer.get_vocab_size() == VOCAB
    return str(tokenizer.to_str())


@cache
def _file() -> TokenizerFile:
    with tempfile.TemporaryDirectory() as folder:
        word_tokenizer().save_pretrained(folder)
        return read_tokenizer_file(Path(folder))


@cache
def _needs() -> dict[int, frozenset[int]]:
    """All tokens that each token is made of, with itself."""
    splits = find_splits(_file())
    return {token: splits.parts(token) | {token} for token in range(VOCAB)}


def rows_without(removed: Iterable[int]) -> list[int]:
    """The rows that stay without some tokens and all that are made of them."""
    gone = {*removed}
    return [row for row, needs in _needs().items() if not needs & gone]


def trimmed_tokenizer(rows: list[int], **changes: Any) -> PreTrainedTokenizerFast:
    """The tokenizer with some of its tokens."""
    contents = trimmed_contents(_file(), np.array(rows))
    tokenizer = Tokenizer.from_str(json.dumps(contents))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**_NAMES, **changes})


def trimmed_pair(removed: Iterable[int]) -> TokenPair:
    """The tokenizer without some tokens, and the whole one as its teacher's."""
    rows = rows_without(removed)
    pair = pair_tokens(trimmed_tokenizer(rows), word_tokenizer(), len(rows), VOCAB)
    assert pair is not None
    return pair


def trimmed_model(model: Any, rows: list[int]) -> Any:
    """Cut a tiny model's embedding and head to some rows; the model is changed."""
    model.config.vocab_size = len(rows)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.weight = torch.nn.Parameter(module.weight.detach()[rows].clone())
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model


def save_words(folder: Path, config: Any, **how: Any) -> Path:
    """Save a tiny model with the tokenizer of words."""
    save_tiny(folder, config, **how)
    word_tokenizer().save_pretrained(folder)
    return folder
