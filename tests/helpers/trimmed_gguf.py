"""Tiny models with trained tokenizers, and the same with fewer tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from optimum_ishrink.architectures.description import ROWS
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.core.json_files import write_json
from optimum_ishrink.edge.probe_lines import PROBES
from optimum_ishrink.pipeline.trimming import Trim
from optimum_ishrink.report.files import PLAN_FILE
from optimum_ishrink.report.plan import Choice, Plan
from optimum_ishrink.report.vocabulary import VocabularyRecord, row_spans
from optimum_ishrink.text.token_map import is_byte_level
from optimum_ishrink.vocabulary.splits import find_splits
from optimum_ishrink.vocabulary.tokenizer_file import read_tokenizer_file
from tests.helpers.byte_level import byte_level_tokenizer
from tests.helpers.tiny import tiny_config, tiny_model

WORDS = "the a of to and in is it you that he was for on are with as his they at be this from have or by one had not"
TEXT = [*PROBES, *(f"{word} {word}s {word.capitalize()}\n{word} 123, {word}!" for word in WORDS.split())]


def byte_level(section: Mapping[str, Any], tokens: int = 700) -> Any:
    """A trained byte-level tokenizer with a section's normalizer and pre-tokenizer."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = byte_level_tokenizer(section, {letter: i for i, letter in enumerate(sorted(alphabet))}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=tokens, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=512)


def byte_fallback(*, prefix: bool, tokens: int = 900) -> Any:
    """A trained tokenizer as it is made from a sentencepiece model: all pairs of tokens that make a token merge."""
    plain = Tokenizer(models.BPE(unk_token="<unk>"))
    plain.normalizer = normalizers.Replace(" ", "▁")
    control = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=tokens, special_tokens=control, show_progress=False)
    plain.train_from_iterator(TEXT, trainer)
    vocabulary = plain.get_vocab()
    merges = [
        (token[:i], token[i:])
        for token in sorted(vocabulary, key=vocabulary.__getitem__)
        if token not in control
        for i in range(1, len(token))
        if token[:i] in vocabulary and token[i:] in vocabulary
    ]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    tokenizer.add_tokens([AddedToken("<table>", normalized=False)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)


def save_model(folder: Path, tokenizer: Any, model_type: str = "llama", padding: int = 0, **changes: Any) -> Path:
    """A tiny model with a row for each token and some without one; its rows are multiples of 32."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 512, **changes}
    config = tiny_config(model_type, vocab_size=len(tokenizer) + padding, **sizes)
    tiny_model(config, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trim(source: Path, folder: Path, share: float = 0.5, llama_cpp_pre: str | None = None) -> Path:
    """Cut the last tokens that a model's others are not made of, and say so in a plan."""
    opened = open_source(source)
    file = read_tokenizer_file(source)
    rows, tokens = opened.config.vocab_size, len(file.tokens)
    kept = {*range(int(tokens * share)), *file.added.values()}
    tokenizer = opened.load_tokenizer()
    least = pre_tokenizers.ByteLevel.alphabet() if is_byte_level(tokenizer) else {}
    kept |= {file.vocabulary[token] for token in least}
    kept |= {row for token, row in file.vocabulary.items() if len(token) == 1 or token.startswith("<0x")}
    chosen = sorted({int(row) for row in find_splits(file).close(sorted(kept))} | set(range(tokens, rows)))
    folder.mkdir()
    trimmed = Trim(opened, chosen)
    trimmed.write_files(folder)
    trimmed.write_weights(folder)
    record = VocabularyRecord(row_spans(chosen), tokens, len(chosen), llama_cpp_pre=llama_cpp_pre)
    write_json(folder / PLAN_FILE, _plan(opened.config.model_type, rows, record).to_json())
    return folder


def _plan(model_type: str, rows: int, record: VocabularyRecord) -> Plan:
    return Plan("base", None, model_type, {ROWS: rows}, {}, (), {}, {}, 2, 1, Choice(), vocabulary=record)
