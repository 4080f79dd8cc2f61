"""Small tokenizers of every kind that a vocabulary can be cut from, trained on the names of Unicode's characters."""

from __future__ import annotations

import io
import json
import random
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]


@cache
def lines() -> list[str]:
    """A few thousand short lines in several scripts: characters, their names, and punctuation."""
    found = []
    for code in [0x20, *range(0x21, 0x250), *range(0x391, 0x450), *range(0x5D0, 0x5EB), *range(0x4E00, 0x4E40)]:
        name = unicodedata.name(chr(code), "").lower()
        found.append(f"{chr(code)}{chr(code)} is the {name}, number {code}. Naïve “quotes” — Страна и люди!")
    return [line + "  \n" for line in found]


def byte_level(vocab_size: int = 700, *, ignore_merges: bool = False) -> Tokenizer:
    """GPT-2's kind; with `ignore_merges`, Llama 3's, with a word that no merge makes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(lines(), trainer)
    if not ignore_merges:
        return tokenizer
    contents = json.loads(tokenizer.to_str())
    contents["model"]["ignore_merges"] = True
    contents["model"]["vocab"]["Ġquickly"] = len(contents["model"]["vocab"])
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated")
    tokenizer = Tokenizer.from_str(json.dumps(contents))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


@cache
def sentencepiece_model(kind: str, byte_fallback: bool, vocab_size: int) -> bytes:
    """A trained sentencepiece model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines()),
        model_writer=model,
        model_type=kind,
        vocab_size=vocab_size,
        byte_fallback=byte_fallback,
        character_coverage=0.999 if byte_fallback else 1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        minloglevel=2,
        hard_vocab_limit=kind == "bpe",
        num_threads=1,
    )
    return model.getvalue()


def pieces_of(data: bytes) -> list[tuple[str, float]]:
    """The pieces of a sentencepiece model, with their scores."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]


def byte_fallback(*, like_gemma: bool = False) -> Tokenizer:
    """Llama 2's kind, converted from sentencepiece with every merge that makes a token; or Gemma's, which splits."""
    pieces = pieces_of(sentencepiece_model("bpe", True, 1600))
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = [
        (-score, vocabulary[piece[:i]], vocabulary[piece[i:]], piece[:i], piece[i:])
        for piece, score in pieces
        for i in range(1, len(piece))
        if piece[:i] in vocabulary and piece[i:] in vocabulary
    ]
    joined = [(left, right) for *_, left, right in sorted(merges)]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=joined, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replaced = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if like_gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
        tokenizer.decoder = decoders.Sequence(replaced)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([*replaced, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def unigram(*, fallback: bool = False) -> Tokenizer:
    """T5's and XGLM's kind."""
    pieces = pieces_of(sentencepiece_model("unigram", fallback, 1300))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    metaspace = decoders.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), metaspace]) if fallback else metaspace
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=False)
    return tokenizer


def added_in_the_middle() -> Tokenizer:
    """A byte-level one with special tokens among the others' ids, and more after them."""
    contents = json.loads(byte_level().to_str())
    numbers = [*range(len(contents["model"]["vocab"]))]
    moved = {0: 300, 1: 301, 2: 302}
    order = [i for i in numbers if i not in moved]
    order[300:300] = [0, 1, 2]
    new = {old: number for number, old in enumerate(order)}
    contents["model"]["vocab"] = {token: new[i] for token, i in contents["model"]["vocab"].items()}
    for token in contents["added_tokens"]:
        token["id"] = new[token["id"]]
    tokenizer = Tokenizer.from_str(json.dumps(contents))
    tokenizer.add_special_tokens(["<|end|>", "<unused0>", "<unused1>", "<|last|>"])
    tokenizer.add_tokens([AddedToken("the letter", normalized=False)])
    return tokenizer


def characters() -> Tokenizer:
    """BPE of characters without a fallback: what it was not trained on is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(lines(), trainers.BpeTrainer(vocab_size=1200, special_tokens=SPECIAL))
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level, ignores merges": lambda: byte_level(ignore_merges=True),
    "added in the middle": added_in_the_middle,
    "byte fallback, like Llama 2": byte_fallback,
    "byte fallback, like Gemma": lambda: byte_fallback(like_gemma=True),
    "unigram": unigram,
    "unigram with fallback": lambda: unigram(fallback=True),
    "characters": characters,
}


@cache
def _contents(kind: str) -> str:
    return str(KINDS[kind]().to_str(pretty=True))


def tokenizer_of(kind: str) -> Tokenizer:
    """The tokenizer of a kind."""
    return Tokenizer.from_str(_contents(kind))


def save_kind(kind: str, folder: Path, **config: Any) -> Path:
    """Save a kind's tokenizer as transformers does, and return the folder."""
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | config
    PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(kind), **names).save_pretrained(folder)
    return folder


def closed_rows(splits: Any, required: Any, more: Any, seed: int, share: float) -> list[int]:
    """The required rows, further ones and a random share of all, with their parts."""
    number = len(splits.left)
    drawn = random.Random(seed).sample(range(number), int(share * number))
    return [int(row) for row in splits.close([*required.ids, *more, *drawn])]
