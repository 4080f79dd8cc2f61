"""The tokens that stay whatever else goes: without them a text, the model's turns or its configs would be damaged."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..checkpoint.generation import GENERATION_CONFIG
from ..checkpoint.tokenizer_files import PROCESSOR_FILES
from ..core.json_files import read_json
from ..errors import SourceError, one_line
from ..text.token_map import is_byte
from .renumber import config_ids
from .splits import Splits
from .token_bytes import byte_alphabet, token_texts
from .tokenizer_file import BYTE_LEVEL, SPACE_MARK, UNIGRAM, TokenizerFile

RESERVED = re.compile(
    r"[<\[|>]+_?(?:reserved|unused|placeholder|dummy|special|madeupword)[a-z_]*[-_ ]?\d+[|>\]<]+", re.IGNORECASE
)
"""Tokens that no model was trained on: <unused7>, <|reserved_special_token_7|>, and their like."""

LONGEST_RUN = 16
"""Characters of whitespace in a row that always stay as one token."""

_WHITESPACE = set(" \n\r\t")
_PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~‘’“”–—…")
_ENDINGS = set(".,:;!?\"')]*-‘’“”–—…")
"""What a line of prose ends with."""

_BYTES, _ALPHABET, _ADDED = "bytes", "characters that nothing else writes", "special and added tokens"
_CONFIGS, _TEMPLATE = "named in the configs", "of the chat template"
_DIGITS, _SPACES, _MARKS, _PARTS = "digits", "whitespace", "punctuation", "parts of these"


@dataclass(frozen=True)
class Required:
    """The tokens that always stay.

    Args:
        reasons: The ids by why they stay, each under its first reason. `parts of these` completes them, so that all
            together are closed under parts. Ids after those of the tokenizer's file may be among them: rows without a
            token that a config names, or tokens that the tokenizer's class adds.
    """

    reasons: Mapping[str, frozenset[int]]

    @property
    def ids(self) -> frozenset[int]:
        """All of them."""
        return frozenset().union(*self.reasons.values())

    @property
    def counts(self) -> dict[str, int]:
        """How many there are for each reason that there is any for."""
        return {reason: len(ids) for reason, ids in self.reasons.items() if ids}

    def describe(self) -> str:
        """Return how many there are and why, for messages: `"1,204: of these 256 are bytes, ..."`."""
        counts = sorted(((len(ids), reason) for reason, ids in self.reasons.items()), reverse=True)
        return f"{len(self.ids):,}: " + ", ".join(f"{count:,} {reason}" for count, reason in counts if count)


def find_required(
    tokenizer: TokenizerFile, splits: Splits, opened: Any, *, drop_reserved: bool = False, punctuation: str = ""
) -> Required:
    """Find the tokens that always stay.

    Args:
        tokenizer: The tokenizer's file. The configs are read from its folder.
        splits: The parts of its tokens.
        opened: The same tokenizer as `AutoTokenizer` opens it: it writes the chat templates.
        drop_reserved: Whether reserved tokens may go, unless something else needs them.
        punctuation: Further characters that are punctuation, such as `"¿¡"`.

    Raises:
        SourceError: A config is damaged, or the chat template writes no conversation.
    """
    texts = token_texts(tokenizer)
    found = {
        _BYTES: _bytes(tokenizer),
        _ALPHABET: _alphabet(tokenizer),
        _CONFIGS: _in_configs(tokenizer, opened, drop_reserved),
        _TEMPLATE: _in_templates(tokenizer, opened),
        _ADDED: {i for token, i in tokenizer.added.items() if not (drop_reserved and RESERVED.fullmatch(token))},
        _DIGITS: {i for i, text in enumerate(texts) if text and _is_number(text)},
        _SPACES: {i for i, text in enumerate(texts) if text and len(text) <= LONGEST_RUN and {*text} <= _WHITESPACE},
        _MARKS: _marks(texts, _PUNCTUATION | {*punctuation}, _ENDINGS | {*punctuation}),
    }
    reasons: dict[str, frozenset[int]] = {}
    seen: set[int] = set()
    for reason, ids in found.items():
        reasons[reason] = frozenset(ids - seen)
        seen |= ids
    reasons[_PARTS] = frozenset(splits.close(seen).tolist()) - seen
    return Required(reasons)


def _bytes(tokenizer: TokenizerFile) -> set[int]:
    """Return the tokens that stand for single bytes: any text can be written with them."""
    names = tokenizer.vocabulary.items()
    if tokenizer.kind == BYTE_LEVEL:
        return {number for token, number in names if token in byte_alphabet()}
    return {number for token, number in names if is_byte(token)} if tokenizer.has_byte_fallback else set()


def _alphabet(tokenizer: TokenizerFile) -> set[int]:
    """Return the tokens of characters that would be unknown without them, or decoded as something else."""
    names = tokenizer.vocabulary
    # Written as bytes, the mark would be decoded as itself, not as a space.
    found = {names[SPACE_MARK]} if SPACE_MARK in names else set()
    unknown = tokenizer.model.get("unk_token")
    if isinstance(unknown, str) and unknown in names:
        found.add(names[unknown])
    if tokenizer.kind == UNIGRAM and names:
        # A character without a token costs a little more than the least likely token. So that it goes on to cost as
        # much, that token stays: both of all and of those that are no special ones, as sentencepiece counts.
        scores = tokenizer.scores
        ordinary = [i for token, i in names.items() if token not in tokenizer.added]
        found |= {int(scores.argmin()), *sorted(ordinary, key=lambda i: scores[i])[:1]}
        if isinstance(tokenizer.model.get("unk_id"), int):
            found.add(tokenizer.model["unk_id"])
    if tokenizer.kind != BYTE_LEVEL and not tokenizer.has_byte_fallback:
        single = {token for token in names if len(token) == 1}
        found |= {names[token] for token in single}
        found |= {number for token, number in names.items() if not single >= {*token}}
    return found


def _in_configs(tokenizer: TokenizerFile, opened: Any, drop_reserved: bool) -> set[int]:
    """Return the tokens that a config, the post-processor, the tokenizer's config or its class names."""
    found: set[int] = set()
    for name in ("config.json", GENERATION_CONFIG, *PROCESSOR_FILES):
        values = _object(tokenizer.folder / name)
        found = found.union(*config_ids(values).values())
    texts: set[str] = set()
    named = _processed(tokenizer.surroundings.get("post_processor"))
    for name in ("tokenizer_config.json", "special_tokens_map.json", *PROCESSOR_FILES):
        for key, value in _object(tokenizer.folder / name).items():
            if key.endswith("_token"):
                named |= _contents([value])
            elif key in ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"):
                texts |= _contents(value.values() if isinstance(value, Mapping) else value or ())
    # A class adds its own special tokens where the vocabulary lacks them, as ids beyond the rows.
    texts |= _contents(getattr(opened, "all_special_tokens", ()))
    if drop_reserved:
        texts = {text for text in texts if not RESERVED.fullmatch(text)}
    numbers = {**tokenizer.vocabulary, **tokenizer.added}
    # Tokens that the class adds to those of the file have the ids after them, which are rows.
    beyond = {i for i in opened.get_vocab().values() if i >= len(tokenizer.tokens)} if opened is not None else set()
    return found | beyond | {numbers[text] for text in texts | named if text in numbers}


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values = read_json(path)
    if not isinstance(values, dict):
        raise SourceError(f"{path} is not a JSON object; restore it from the base model")
    return values


def _contents(values: Iterable[Any]) -> set[str]:
    """Return the texts of tokens, each written as a text or as an object."""
    found = {value.get("content") if isinstance(value, Mapping) else value for value in values}
    return {text for text in found if isinstance(text, str)}


def _processed(part: Any) -> set[str]:
    """Return the tokens that a post-processor adds."""
    found: set[str] = set()
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key == "special_tokens" and isinstance(value, Mapping):
                found = found.union(value.keys(), *(entry["tokens"] for entry in value.values()))
            elif key in ("sep", "cls") and isinstance(value, list):
                found.add(value[0])
            elif key == "processors":
                found = found.union(*map(_processed, value))
    return found


_TURNS = (
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "OK."},
)
_CHATS = (_TURNS, ({"role": "system", "content": "No."}, *_TURNS), _TURNS[:1])
_TOOL = {
    "type": "function",
    "function": {
        "name": "get",
        "description": "Gets it.",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    },
}
_VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"tools": [_TOOL]},
    {"enable_thinking": True},
    {"enable_thinking": False},
)
_DATE_CODES = ("%-d", "%d", "%a", "%A", "%b", "%B", "%-m", "%m", "%y", "%Y", "%H", "%I", "%M", "%S", "%p")
_DATES = tuple(datetime(2024 + month, month, 28 - month) for month in range(1, 13))
"""Every month, and years to come: some templates write the date, and what stays must not depend on today's."""


def _in_templates(tokenizer: TokenizerFile, opened: Any) -> set[int]:
    """Return the tokens that the chat templates write around the words of a conversation."""
    templates = getattr(opened, "chat_template", None) or ()
    found = [*(templates.values() if isinstance(templates, Mapping) else [templates] if templates else [])]
    for name in ("chat_template.json", "processor_config.json"):  # of the processor, for texts and other inputs
        template = _object(tokenizer.folder / name).get("chat_template")
        if isinstance(template, str) and template not in found:
            found.append(template)
    if not found:
        return set()
    texts: set[str] = set()
    reason = ""
    for template in found:
        for parts in (False, True):  # some templates take a turn's words as a list of its parts alone
            written, why = _written(opened, template, parts=parts)
            reason = why or reason
            texts |= written
            if written:
                break
    if not texts:
        raise SourceError(
            f"the chat template writes no conversation ({reason}), so the tokens that it needs are unknown; mend it, "
            "or remove it"
        )
    return {number for text in texts for number in opened(text, add_special_tokens=False)["input_ids"]}


def _written(opened: Any, template: str, *, parts: bool) -> tuple[set[str], str]:
    """Return what a template makes of conversations, and why it made nothing of the last that it refused."""
    texts: set[str] = set()
    reason = ""
    dates = _DATES if "strftime_now" in template else ()
    for chat, variant, date in itertools.product(_CHATS, _VARIANTS, dates or (None,)):
        turns = [
            {**turn, "content": [{"type": "text", "text": turn["content"]}] if parts else turn["content"]}
            for turn in chat
        ]
        try:
            texts.add(
                opened.apply_chat_template(
                    turns,
                    tokenize=False,
                    add_generation_prompt=chat[-1]["role"] == "user",
                    chat_template=_on(date, template) if date else template,
                    **variant,
                )
            )
        except Exception as error:  # a template is a program, which may refuse a role in any way
            reason = one_line(error)
    return texts, reason


def _on(date: datetime, template: str) -> str:
    """Return a template that writes another date than today's."""
    codes = "".join(f"|replace('{code}', '{date.strftime(code)}')" for code in _DATE_CODES)
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{codes} }}}}{{%- endmacro -%}}{template}"


def _is_number(text: str) -> bool:
    digits = text[1:] if text[0] == " " else text
    return 1 <= len(digits) <= 3 and digits.isascii() and digits.isdigit()


def _marks(texts: Iterable[str | None], marks: set[str], endings: set[str]) -> set[int]:
    """Return tokens of punctuation: one or two marks, runs of one, and ends of lines, after a space or not."""
    found = set()
    for number, text in enumerate(texts):
        if not text:
            continue
        body = text[1:] if text[0] == " " else text
        bare = body.rstrip("\n")
        if not bare or not marks >= {*bare}:
            continue
        short = len(bare) <= 2 or (len({*bare}) == 1 and len(bare) <= 4)
        ends = len(body) - len(bare) <= 2 and endings >= {*bare} and len(bare) <= 3
        if (bare == body and short) or ends:
            found.add(number)
    return found
