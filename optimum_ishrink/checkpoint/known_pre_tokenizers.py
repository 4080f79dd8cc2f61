"""The pre-tokenizers of byte-level vocabularies that llama.cpp has code for, by the names that GGUF files have."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..core.json_codec import from_plain
from ..core.json_files import read_json


@dataclass(frozen=True)
class KnownPreTokenizer:
    """A pre-tokenizer that llama.cpp has code for. A test compares the two.

    Args:
        names: Its names in llama.cpp, which split alike; the first where nothing says which.
        normalizer: The section of tokenizer.json, without what changes no token. llama.cpp composes no characters:
            with NFC the tokens are equal for text that is composed already, as nearly all is.
        pre_tokenizer: The section of tokenizer.json.
        ignore_merges: Whether a word that is a token is taken whole.
        unlike: Unicode categories, or their first letters, of characters beyond ASCII by which llama.cpp may split a
            word otherwise, in published models too: its expressions are simpler.
    """

    names: tuple[str, ...]
    normalizer: Any
    pre_tokenizer: Any
    ignore_merges: bool
    unlike: tuple[str, ...] = ()

    def may_differ(self, line: str) -> bool:
        """Return whether a line has characters by which llama.cpp may split it otherwise.

        Args:
            line: The line.
        """
        return any(not letter.isascii() and unicodedata.category(letter).startswith(self.unlike) for letter in line)


@cache
def known_pre_tokenizers() -> tuple[KnownPreTokenizer, ...]:
    """Return the pre-tokenizers whose code in llama.cpp was compared with the tokenizers library."""
    entries = read_json(Path(__file__).with_suffix(".json"))
    return tuple(from_plain(KnownPreTokenizer, entry, kind="pre-tokenizer") for entry in entries)
