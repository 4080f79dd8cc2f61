"""How a checkpoint's tokenizer goes into a GGUF file: what llama.cpp's converter is told that it does not know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..architectures.description import ROWS
from ..checkpoint.known_pre_tokenizers import KnownPreTokenizer
from ..errors import RequestError, SourceError, did_you_mean
from ..report.run import read_plan
from ..text.token_map import is_byte_level
from .pieces import MODEL_FILE
from .pre_tokenizers import converter_name, converter_names, find_known


@dataclass(frozen=True)
class GgufTokenizer:
    """What the converter is told about a tokenizer.

    Args:
        pre_tokenizer: llama.cpp's name of the pre-tokenizer; None where the converter knows it, or needs none.
        pieces: Whether a sentencepiece model is made from tokenizer.json.
        space_prefix: Whether text is read as if a space stood before it; of use with `pieces`.
        whole_rows: Rows that the vocabulary had before it was cut; None where it was not.
        known: What is known of the pre-tokenizer.
        strips_prefix: Whether no space is added to text that begins with one. llama.cpp adds one to any text.
    """

    pre_tokenizer: str | None = None
    pieces: bool = False
    space_prefix: bool = False
    whole_rows: int | None = None
    known: KnownPreTokenizer | None = None
    strips_prefix: bool = False

    @property
    def is_own(self) -> bool:
        """Whether the file's tokenizer is not what the converter alone would write: lines of text have to agree."""
        return self.whole_rows is not None or self.pieces or self.pre_tokenizer is not None

    def may_differ(self, line: str) -> bool:
        """Return whether llama.cpp splits a line otherwise in published models of this kind too.

        Args:
            line: The line.
        """
        if self.strips_prefix and line[:1].isspace():
            return True
        return self.known is not None and self.known.may_differ(line)


def find_gguf_tokenizer(folder: Path, tokenizer: Any, requested: str | None = None) -> GgufTokenizer:
    """Return what the converter has to be told about a checkpoint's tokenizer.

    The name of a byte-level vocabulary's pre-tokenizer is the requested one; else what the converter finds by its
    hash; else that of a pre-tokenizer whose code in llama.cpp was compared with it; else the one that was recorded
    when the vocabulary was cut.

    Args:
        folder: The checkpoint.
        tokenizer: Its tokenizer.
        requested: Name of the pre-tokenizer.

    Raises:
        RequestError: There is no such name, or the tokenizer needs none.
        SourceError: Nothing says which pre-tokenizer it is.
    """
    plan = read_plan(folder)
    record = None if plan is None else plan.vocabulary
    whole_rows = None if plan is None or record is None else plan.shape[ROWS]
    fast = getattr(tokenizer, "is_fast", False)
    byte_level = fast and is_byte_level(tokenizer)
    if requested is not None:
        _check_name(requested, byte_level)
    if not byte_level:
        if not fast or not getattr(tokenizer.backend_tokenizer.model, "byte_fallback", False):
            return GgufTokenizer(whole_rows=whole_rows)
        space_prefix = _spelled(tokenizer, "a").startswith("▁")
        return GgufTokenizer(
            pieces=not (folder / MODEL_FILE).is_file(),
            space_prefix=space_prefix,
            whole_rows=whole_rows,
            strips_prefix=space_prefix and _spelled(tokenizer, " a") == "▁a",
        )
    known = find_known(tokenizer)
    if requested is None and converter_name(tokenizer) is not None:
        return GgufTokenizer(whole_rows=whole_rows, known=known)
    name = requested or _name_of(known, None if record is None else record.llama_cpp_pre)
    if name is None:
        raise SourceError(
            f"nothing says what llama.cpp calls the pre-tokenizer of {folder.name}, whose token ids it does not know; "
            "pass the name that it has for the base with --pre-tokenizer, such as gpt-2 or smollm"
        )
    return GgufTokenizer(pre_tokenizer=name, whole_rows=whole_rows, known=known)


def name_once_cut(tokenizer: Any) -> str | None:
    """Return the name of the pre-tokenizer that files of models have whose vocabulary is cut from a tokenizer's.

    Args:
        tokenizer: The tokenizer, with its whole vocabulary.

    Returns:
        None where files need no name, or nothing says it.
    """
    if not getattr(tokenizer, "is_fast", False) or not is_byte_level(tokenizer):
        return None
    return _name_of(find_known(tokenizer), converter_name(tokenizer))


def _name_of(known: KnownPreTokenizer | None, recorded: str | None) -> str | None:
    """Return the name that ids do not say: the recorded one, unless the tokenizer is known to split otherwise."""
    names = () if known is None else known.names
    return (recorded if recorded in names else None) or next(iter(names), recorded)


def _spelled(tokenizer: Any, text: str) -> str:
    return "".join(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).tokens)


def _check_name(requested: str, byte_level: bool) -> None:
    if not byte_level:
        raise RequestError(
            "--pre-tokenizer names how llama.cpp splits text for a byte-level vocabulary, and this model's is none; "
            "leave it out"
        )
    names = converter_names()
    if requested not in names:
        raise RequestError(
            f"unknown pre-tokenizer {requested!r}{did_you_mean(requested, names)}; use a name of llama.cpp's "
            "converter, such as gpt-2 or smollm"
        )
