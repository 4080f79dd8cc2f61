"""Tokenizers and models with a part of a base's tokens, cut in the simplest way; and tokenizers of several kinds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [f"Zur Mühle {i}: naïve café – 日本語 und {i * 37} Wörter, dann Ende." for i in range(40)]
SPECIAL = ["<pad>", "<s>", "</s>"]
_BYTES = [f"<0x{number:02X}>" for number in range(256)]


def _fast(tokenizer: Tokenizer, **how: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **how
    )


def byte_level_tokenizer(size: int = 330, *, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE with tokens of several bytes."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _fast(tokenizer)


def byte_fallback_tokenizer(size: int = 420) -> PreTrainedTokenizerFast:
    """A BPE of characters, whose others are bytes; a space is put before each text, as Llama 2's does."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = _spaces()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", *SPECIAL, *_BYTES], show_progress=False, min_frequency=2
    )
    trained.train_from_iterator(TEXTS, trainer)
    data = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in data["merges"]]
    tokenizer = Tokenizer(models.BPE(data["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer, tokenizer.decoder = _spaces(), _joined()
    tokenizer.add_special_tokens(["<unk>", *SPECIAL])
    return _fast(tokenizer, unk_token="<unk>")


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """A Unigram with byte fallback: the characters of some text, and the parts of its words."""
    words = {"\u2581" + word for text in TEXTS[:3] for word in text.split()}
    parts = {word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, len(word) + 1)}
    scored = [(token, 0.0) for token in ("<unk>", *SPECIAL)]
    scored += [(part, -8.0 + 0.5 * len(part)) for part in sorted(parts)] + [(token, -20.0) for token in _BYTES]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
    tokenizer.normalizer, tokenizer.decoder = _spaces(), _joined()
    tokenizer.add_special_tokens(["<unk>", *SPECIAL])
    return _fast(tokenizer, unk_token="<unk>")


def _spaces() -> Any:
    return normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])


def _joined() -> Any:
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(steps)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level_tokenizer,
    "ignore-merges": lambda: byte_level_tokenizer(ignore_merges=True),
    "byte-fallback": byte_fallback_tokenizer,
    "unigram": unigram_tokenizer,
}


def trim(tokenizer: Any, wanted: Callable[[str], bool]) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """Cut a tokenizer to the tokens that are wanted and can be made of others, and to all that are added, or short.

    Args:
        tokenizer: The tokenizer, of the tokenizers library.
        wanted: Whether a token stays.

    Returns:
        The smaller tokenizer, and the rows of the tokens that stay, ascending.
    """
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = data["model"], {each["content"] for each in data["added_tokens"]}
    scores = dict(model["vocab"]) if isinstance(model["vocab"], list) else None
    kept = {token for token in tokenizer.get_vocab() if token in added or token in _BYTES or len(token) == 1}
    if scores is not None:
        kept |= {token for token in scores if wanted(token)}
    merges = []
    for merge in model.get("merges", ()):
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        if {left, right} <= kept and (left + right in kept or wanted(left + right)):
            kept.add(left + right)
            merges.append(merge)
    rows = sorted(row for token, row in tokenizer.get_vocab().items() if token in kept)
    new = {row: position for position, row in enumerate(rows)}
    ids = {token: new[row] for token, row in tokenizer.get_vocab().items() if token in kept}
    if scores is not None:
        order = sorted((row, token) for token, row in ids.items())
        model["vocab"] = [[token, scores[token]] for _, token in order]
    else:
        in_model = model["vocab"].keys() & kept
        model["vocab"], model["merges"] = {token: ids[token] for token in in_model}, merges
    for each in data["added_tokens"]:
        each["id"] = ids[each["content"]]
    for each in ((data.get("post_processor") or {}).get("special_tokens") or {}).values():
        each["ids"] = [ids[token] for token in each["tokens"]]
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), **names), rows


def save_cut_rows(folder: Path, target: Path, rows: Iterable[int], tokenizer: Any) -> Path:
    """Write a checkpoint with some rows of its embedding and head, and another tokenizer.

    Args:
        folder: The checkpoint, in one file.
        target: The new folder.
        rows: The rows that stay.
        tokenizer: The tokenizer that belongs to them.
    """
    target.mkdir()
    rows = list(rows)
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = tensors[name][rows].clone()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        data = json.loads((folder / name).read_text())
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if isinstance(data.get(key), int):
                data[key] = rows.index(data[key])
        if "vocab_size" in data:
            data["vocab_size"] = len(rows)
        (target / name).write_text(json.dumps(data))
    tokenizer.save_pretrained(target)
    return target
