"""The tokenizer in a GGUF file, where transformers reads it otherwise than the file has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.integrations.gguf import gguf_tokenizer_mapping as reading

from .gguf_settings import GgufSettings
from .known_pre_tokenizers import KnownPreTokenizer, known_pre_tokenizers

_CONTROL, _USER_DEFINED = 3, 4
"""Kinds of tokens that are matched whole, before the merges; the first stand for no text."""

_BYTE_LEVEL = "gpt2"
"""The kind of vocabulary whose pre-tokenizer has a name, in GGUF's words."""

_UNNAMED = (None, "default")


def complete_tokenizer(tokenizer: Any, settings: GgufSettings) -> None:
    """Give a tokenizer what the file says and transformers has left out or replaced.

    transformers spells every token that has letters beyond the byte alphabet in bytes, special ones as well, and adds
    those that the file names behind the vocabulary, where the model has no rows. Of the pre-tokenizers that llama.cpp
    knows it has some; the others become GPT-2's without a word.

    Args:
        tokenizer: What transformers has read; it is changed.
        settings: The file's header.

    Raises:
        SourceError: The pre-tokenizer is not known, or special tokens have other ids than in the file.
    """
    values = settings.tokenizer
    tokens, kinds = values.get("tokens") or [], values.get("token_type") or []
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    before = json.dumps(data)
    # What a class of transformers adds to every vocabulary, and this one does not have.
    data["added_tokens"] = [each for each in data.get("added_tokens") or () if each["id"] < len(tokens)]
    if values.get("model") == _BYTE_LEVEL:
        _restore_tokens(data, tokens, kinds)
        _set_pre_tokenizer(data, values.get("pre"), settings)
    if tokens and json.dumps(data) != before:
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(data))  # it has no other way in
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        wanted, found = values.get(f"{key}_token_id"), getattr(tokenizer, f"{name}_token_id")
        if wanted is not None and wanted != found and getattr(tokenizer, f"{name}_token") is not None:
            raise settings.not_read(f"the {name} token at id {wanted:,}, where its tokenizer would have another")


def _restore_tokens(data: dict[str, Any], tokens: list[str], kinds: list[int]) -> None:
    """Spell special tokens as the file does, at the ids that they have there."""
    spelling = bytes_to_unicode()
    alphabet, vocabulary = set(spelling.values()), data["model"]["vocab"]
    added = {each["content"]: each for each in data["added_tokens"]}
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False)):
        if kind in (_CONTROL, _USER_DEFINED) and not set(token) <= alphabet:
            vocabulary.pop("".join(spelling[byte] for byte in token.encode()), None)
            vocabulary[token] = number
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            added[token] = {"id": number, "content": token, **flags, "special": kind == _CONTROL}
    data["added_tokens"] = sorted(added.values(), key=lambda each: each["id"])
    for entry in _specials(data.get("post_processor")):
        entry["ids"] = [vocabulary.get(token, old) for token, old in zip(entry["tokens"], entry["ids"], strict=True)]


def _specials(section: Any) -> Iterator[dict[str, Any]]:
    """Yield the special tokens, with their ids, that a post-processor adds."""
    if isinstance(section, dict):
        if {"ids", "tokens"} <= section.keys():
            yield section
        section = list(section.values())
    for part in section if isinstance(section, list) else ():
        yield from _specials(part)


def _set_pre_tokenizer(data: dict[str, Any], name: str | None, settings: GgufSettings) -> None:
    """Set the pre-tokenizer of a name, where transformers has none for it, and whether words are tokens as a whole."""
    if name in _UNNAMED:
        return
    known = _known(str(name))
    if known is not None:
        data["model"]["ignore_merges"] = known.ignore_merges
    if name in reading.GGUF_PRE_TOKENIZER_SPLITS:
        return
    if known is None:
        raise settings.not_read(f"the pre-tokenizer {name!r}")
    data["normalizer"] = known.normalizer
    data["pre_tokenizer"] = _with_offsets(known.pre_tokenizer)


def _known(name: str) -> KnownPreTokenizer | None:
    """Return the pre-tokenizer of a name; of several that differ in NFC alone, the one that leaves text as it is."""
    found = [entry for entry in known_pre_tokenizers() if name in entry.names]
    return min(found, key=lambda entry: entry.normalizer is not None, default=None)


def _with_offsets(section: Any) -> Any:
    """Return a section with the field that the table leaves out, because it changes no token."""
    if isinstance(section, dict):
        filled = {key: _with_offsets(value) for key, value in section.items()}
        return {**filled, "trim_offsets": True} if filled.get("type") == "ByteLevel" else filled
    return [_with_offsets(part) for part in section] if isinstance(section, (list, tuple)) else section
