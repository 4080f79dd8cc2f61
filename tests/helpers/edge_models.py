"""Tiny checkpoints that llama.cpp's converter takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.helpers.tiny import tiny_config, tiny_model


def byte_tokenizer() -> Any:
    """A tokenizer of bytes and letters, of the kind that llama.cpp's converter takes without knowing its name."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for letter in "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN":
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def save_edge(folder: Path, **changes: Any) -> Path:
    values = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 512, **changes}
    tiny_model(tiny_config("llama", **values), 0).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
