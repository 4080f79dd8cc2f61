"""Reading tokenizer.json: the model of its tokens, and what surrounds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.json_files import read_json
from ..errors import SourceError, one_line

TOKENIZER_FILE = "tokenizer.json"

BYTE_LEVEL = "byte-level BPE"
BYTE_FALLBACK = "BPE with byte fallback"
CHARACTERS = "BPE of characters"
UNIGRAM = "Unigram"

SPACE_MARK = "▁"
"""What sentencepiece writes for a space."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenizerFile:
    """The contents of a tokenizer.json whose vocabulary can be cut.

    Args:
        folder: The folder that it was read from.
        kind: `BYTE_LEVEL`, `BYTE_FALLBACK`, `CHARACTERS` or `UNIGRAM`.
        surroundings: The file's contents without the model's vocabulary and merges.
        vocabulary: The model's tokens with their ids. Added tokens may be among them.
        added: The added tokens with their ids: they are found in the text before the model sees it.
        merges: Which two tokens each merge joins, by rank, shape (merges, 2); empty for Unigram.
        merged: The token that each merge makes, shape (merges,).
        scores: Log-probability of each token by id; empty for BPE.
        merges_are_texts: Whether the file writes a merge as one text, as older files do, not as a list of two.
    """

    folder: Path
    kind: str
    surroundings: Mapping[str, Any]
    vocabulary: Mapping[str, int]
    added: Mapping[str, int]
    merges: Ints
    merged: Ints
    scores: npt.NDArray[np.float64]
    merges_are_texts: bool = False

    @property
    def model(self) -> Mapping[str, Any]:
        """The model's settings, without its vocabulary and merges."""
        found: Mapping[str, Any] = self.surroundings["model"]
        return found

    @property
    def ignores_merges(self) -> bool:
        """Whether a whole word that is a token is that token, whatever the merges make of it."""
        return bool(self.model.get("ignore_merges"))

    @property
    def has_byte_fallback(self) -> bool:
        """Whether a character without a token is written as its bytes' tokens, such as `<0xE2>`."""
        return bool(self.model.get("byte_fallback"))

    @cached_property
    def tokens(self) -> tuple[str | None, ...]:
        """Every token by its id; None for an id without a token."""
        found: list[str | None] = [None] * (1 + max([*self.vocabulary.values(), *self.added.values()], default=-1))
        for token, number in (*self.vocabulary.items(), *self.added.items()):
            found[number] = token
        return tuple(found)

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids of the added tokens that decoding can skip."""
        return frozenset(
            self.added[token["content"]] for token in self.surroundings["added_tokens"] if token.get("special")
        )


def read_tokenizer_file(folder: Path) -> TokenizerFile:
    """Read a folder's tokenizer.json.

    Args:
        folder: The checkpoint.

    Raises:
        SourceError: There is none, it is damaged, or it is of a kind whose vocabulary cannot be cut.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise SourceError(
            f"{folder} has no {TOKENIZER_FILE}, and only that file's vocabulary can be cut; write one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder), or leave vocab_size as it is"
        )
    contents = read_json(path)
    model = contents.get("model") if isinstance(contents, dict) else None
    if not isinstance(model, dict) or "vocab" not in model:
        raise SourceError(f"{path} is not a file of the tokenizers library; restore it from the base model")
    kind = _kind(contents, path)
    vocabulary, merges = model.pop("vocab"), model.pop("merges", [])
    contents["added_tokens"] = contents.get("added_tokens") or []
    try:
        scores = np.empty(0)
        if kind == UNIGRAM:
            scores = np.array([score for _, score in vocabulary], dtype=np.float64)
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        vocabulary = {token: int(number) for token, number in vocabulary.items()}
        texts = bool(merges) and isinstance(merges[0], str)
        pairs = [merge.split(" ") for merge in merges] if texts else merges
        joined = np.array([(vocabulary[a], vocabulary[b]) for a, b in pairs], dtype=np.int64).reshape(-1, 2)
        merged = np.array([vocabulary[a + b] for a, b in pairs], dtype=np.int64)
        added = {token["content"]: int(token["id"]) for token in contents["added_tokens"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {one_line(error, 100)}"
        raise SourceError(f"{path} is damaged ({reason}); restore it from the base model") from None
    _check_added(vocabulary, added, path)
    return TokenizerFile(folder, kind, contents, vocabulary, added, joined, merged, scores, texts)


def _kind(contents: Mapping[str, Any], path: Path) -> str:
    """Name the kind of a tokenizer, and refuse those whose vocabulary cannot be cut."""
    model = contents["model"]
    name = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if name == "Unigram":
        return UNIGRAM
    odd = [key for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(key)]
    if name != "BPE" or odd:
        what = f"a BPE model with {' and '.join(odd)}" if name == "BPE" else f"a {name} model"
        raise SourceError(
            f"{path} holds {what}, whose vocabulary cannot be cut; BPE (byte-level or with byte fallback) and "
            "Unigram can: leave vocab_size as it is"
        )
    if any("ByteLevel" in types(contents.get(part)) for part in ("pre_tokenizer", "normalizer")):
        return BYTE_LEVEL
    return BYTE_FALLBACK if model.get("byte_fallback") else CHARACTERS


def types(part: Any) -> set[str]:
    """Return the types of a part of a tokenizer, such as its decoder, and of all parts within it."""
    if isinstance(part, Mapping):
        own = {part["type"]} if isinstance(part.get("type"), str) else set()
        return own.union(*(types(value) for value in part.values()))
    if isinstance(part, list):
        return set().union(*map(types, part))
    return set()


def _check_added(vocabulary: Mapping[str, int], added: Mapping[str, int], path: Path) -> None:
    """Check that the added tokens have the ids that the tokenizers library gives them, whatever the file says."""
    following = len(vocabulary)
    for token, number in sorted(added.items(), key=lambda item: item[1]):
        expected = vocabulary.get(token, following)
        if number != expected:
            raise SourceError(
                f"{path} adds the token {token!r} as id {number}, and it is read as {expected}; write the file anew "
                "with AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        following += token not in vocabulary
