"""Writing a tokenizer with fewer tokens: every file that says the same, and a note for each that cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..architectures.config_edit import without_code
from ..checkpoint.tokenizer_files import TOKENIZER_PATTERNS
from ..core.json_files import read_json, write_json
from ..errors import ShapeError, SourceError, VerificationError, one_line
from .merging import Merges
from .sentencepiece_model import trimmed_sentencepiece
from .splits import Splits, find_splits
from .tokenizer_file import TOKENIZER_FILE, UNIGRAM, Ints, TokenizerFile, read_tokenizer_file

_TEMPLATES = ("chat_template*", "additional_chat_templates/*.jinja")
_TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")


def write_trimmed_tokenizer(source: Path, folder: Path, rows: Sequence[int]) -> list[str]:
    """Write the files of a tokenizer that has some of another's tokens.

    Tokens keep their strings, and merges their order. The merges that stay are those that the strings of the tokens
    that stay are merged by: in no text is another one of these tokens' merges applied (`splits.py` says why). The
    tokens have to be closed under parts (`Splits.close`). Chat templates are copied.

    Args:
        source: The folder of the tokenizer.
        folder: An existing folder.
        rows: The rows that stay, ascending; a token's new id is its position. Rows without a token may be among them.

    Returns:
        A line for each file that is left out, because nothing here can write it for fewer tokens.

    Raises:
        SourceError: The tokenizer is of a kind that cannot be cut, or a file is damaged.
        ShapeError: A token is removed that the tokenizer's own files need.
        VerificationError: The tokenizers library reads other ids than those that were to be written.
    """
    tokenizer = read_tokenizer_file(source)
    if len(rows) == 0 or not all(a < b for a, b in zip([-1, *rows], rows, strict=False)):
        raise ShapeError("the rows that stay are not ascending row numbers; read them from the plan as they are")
    numbers = {int(row): number for number, row in enumerate(rows)}
    kept = _Kept({**tokenizer.vocabulary, **tokenizer.added}, numbers)
    write_json(folder / TOKENIZER_FILE, trimmed_contents(tokenizer, np.asarray(rows, dtype=np.int64)))
    _check_ids(folder / TOKENIZER_FILE, {token: numbers[i] for token, i in kept.known.items() if i in numbers})
    notes: list[str] = []
    names = {path.relative_to(source) for pattern in TOKENIZER_PATTERNS for path in source.glob(pattern)}
    copied = {path.relative_to(source) for pattern in _TEMPLATES for path in source.glob(pattern)}
    for name in sorted(names - {Path(TOKENIZER_FILE)}):
        path = source / name
        if not path.is_file() or path.suffix == ".py":
            continue
        (folder / name).parent.mkdir(exist_ok=True)
        if name in copied:
            shutil.copyfile(path, folder / name)
        elif path.suffix == ".model":
            data = trimmed_sentencepiece(path.read_bytes(), tokenizer, rows)
            if isinstance(data, str):
                notes.append(f"{name} is left out: {data}")
            else:
                (folder / name).write_bytes(data)
        elif name.name == "merges.txt" and (source / "vocab.json").is_file():
            _write_merges(path, folder / name, kept)
        elif write := _WRITERS.get(name.as_posix()):
            contents = write(read_json(path), kept)
            if contents is None:
                notes.append(f"{name} is left out: its ids are not those of {TOKENIZER_FILE}")
            else:
                write_json(folder / name, contents)
        else:
            notes.append(f"{name} is left out: no library writes this format for fewer tokens")
    return notes


def trimmed_contents(tokenizer: TokenizerFile, rows: Ints) -> dict[str, Any]:
    """Return the contents of a tokenizer.json with some of the tokens.

    Args:
        tokenizer: The tokenizer.
        rows: The rows that stay, ascending.

    Raises:
        ShapeError: A token is removed that the model or the post-processor needs.
    """
    tokens = tokenizer.tokens
    new_ids = {int(row): i for i, row in enumerate(rows) if row < len(tokens) and tokens[row] is not None}
    vocabulary = {token: new_ids[row] for token, row in tokenizer.vocabulary.items() if row in new_ids}
    contents = {**tokenizer.surroundings, "model": dict(tokenizer.model)}
    contents["added_tokens"] = [
        {**token, "id": new_ids[token["id"]]}
        for token in tokenizer.surroundings["added_tokens"]
        if token["id"] in new_ids
    ]
    following = len(vocabulary)
    for token in contents["added_tokens"]:  # the library numbers those that the model lacks after the model's own
        expected = vocabulary.get(token["content"], following)
        following += token["content"] not in vocabulary
        if token["id"] != expected:
            raise ShapeError("rows without a token lie between those that stay; leave them out")
    model = contents["model"]
    if tokenizer.kind == UNIGRAM:
        by_id = sorted(vocabulary.items(), key=lambda item: item[1])
        old = {new: row for row, new in new_ids.items()}
        model["vocab"] = [[token, float(tokenizer.scores[old[number]])] for token, number in by_id]
        if model.get("unk_id") is not None:
            model["unk_id"] = _needed(new_ids, model["unk_id"], "the model's unk_id")
    else:
        model["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
        model["merges"] = [
            f"{tokens[a]} {tokens[b]}" if tokenizer.merges_are_texts else [tokens[a], tokens[b]]
            for a, b in tokenizer.merges[kept_merges(tokenizer, rows)].tolist()
        ]
        if (unknown := model.get("unk_token")) is not None and unknown in tokenizer.vocabulary:
            _needed(new_ids, tokenizer.vocabulary[unknown], "the model's unk_token")
    contents["post_processor"] = _processor(contents.get("post_processor"), new_ids)
    padding = contents.get("padding")
    if isinstance(padding, Mapping) and "pad_id" in padding:
        contents["padding"] = {**padding, "pad_id": _needed(new_ids, padding["pad_id"], "padding")}
    return contents


def kept_merges(tokenizer: TokenizerFile, rows: Ints, splits: Splits | None = None) -> Ints:
    """Return the ranks of the merges that tokens are made by, where their parts stay, too, ascending.

    Args:
        tokenizer: The tokenizer.
        rows: The rows that stay.
        splits: The parts of its tokens, where they are known: to find them takes seconds.
    """
    splits = splits or find_splits(tokenizer)
    kept = np.zeros(len(tokenizer.tokens), dtype=bool)
    kept[rows[rows < len(kept)]] = True
    whole = np.flatnonzero(kept & (splits.left >= 0))
    whole = whole[kept[splits.left[whole]] & kept[splits.right[whole]]]
    merges = Merges.of(tokenizer.merges, tokenizer.merged, len(kept))
    return np.sort(merges.rank(splits.left[whole], splits.right[whole]))


def _needed(new_ids: Mapping[int, int], number: int, what: str) -> int:
    if number not in new_ids:
        raise ShapeError(f"{what} names token {number}, which would be removed; let it stay")
    return new_ids[number]


def _processor(part: Any, new_ids: Mapping[int, int]) -> Any:
    """Return a post-processor with the new ids of the tokens that it adds."""
    if not isinstance(part, Mapping):
        return part
    found = dict(part)
    for key, value in part.items():
        if key == "special_tokens" and isinstance(value, Mapping):
            found[key] = {
                name: {**entry, "ids": [_needed(new_ids, i, "the post-processor") for i in entry["ids"]]}
                for name, entry in value.items()
            }
        elif key in ("sep", "cls") and isinstance(value, list):
            found[key] = [value[0], _needed(new_ids, value[1], "the post-processor")]
        elif key == "processors":
            found[key] = [_processor(inner, new_ids) for inner in value]
    return found


def _check_ids(path: Path, new: Mapping[str, int]) -> None:
    """Check that the tokenizers library reads a written file, with the ids that it was to have."""
    try:
        found = Tokenizer.from_file(str(path)).get_vocab()
    except Exception as error:  # the library raises nothing narrower
        reason = one_line(error)
        raise VerificationError(f"the tokenizers library cannot read the trimmed {path.name} ({reason})") from None
    if found != new:
        wrong = min(token for token in found.keys() | new.keys() if found.get(token) != new.get(token))
        raise VerificationError(
            f"the trimmed {path.name} is read with {wrong!r} as {found.get(wrong)} instead of {new.get(wrong)}"
        )


@dataclass(frozen=True)
class _Kept:
    """What became of each token.

    Args:
        known: The tokens of tokenizer.json with their ids.
        numbers: The new id of each row that stays.
    """

    known: Mapping[str, int]
    numbers: Mapping[int, int]

    def has(self, token: Any) -> bool:
        """Whether a token, written as a text or an object, stays. Those that tokenizer.json lacks are not cut."""
        text = token.get("content") if isinstance(token, Mapping) else token
        return not isinstance(text, str) or text not in self.known or self.known[text] in self.numbers

    def agrees(self, token: str, number: int) -> bool:
        """Whether a file gives a token the id of tokenizer.json, or one after these, which a class may add."""
        return self.known[token] == number if token in self.known else number > max(self.known.values(), default=-1)


def _write_merges(path: Path, target: Path, kept: _Kept) -> None:
    """Write merges.txt: a version in the first line, then one merge a line."""
    lines = path.read_text(encoding="utf-8").split("\n")
    stay = [line for line in lines if line.startswith("#version") or not line or _stays(line, kept)]
    target.write_text("\n".join(stay), encoding="utf-8")


def _stays(merge: str, kept: _Kept) -> bool:
    left, _, right = merge.partition(" ")
    return all(kept.known.get(token) in kept.numbers for token in (left, right, left + right))


def _numbered(contents: Any, kept: _Kept) -> Any:
    """Return a file that maps tokens to ids, or None where its ids are not the tokenizer's."""
    if not isinstance(contents, Mapping) or not all(kept.agrees(token, number) for token, number in contents.items()):
        return None
    return {token: kept.numbers[number] for token, number in contents.items() if number in kept.numbers}


def _token_config(contents: Any, kept: _Kept) -> Any:
    """Return a tokenizer_config.json or special_tokens_map.json without the tokens that were removed."""
    found = without_code(contents)
    for key, value in contents.items():
        if key == "added_tokens_decoder":
            if not all(kept.agrees(token["content"], int(number)) for number, token in value.items()):
                raise SourceError(
                    f"{key} of the tokenizer's config has other ids than {TOKENIZER_FILE}; write both anew with "
                    "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
                )
            stay = {number: token for number, token in value.items() if int(number) in kept.numbers}
            found[key] = {str(kept.numbers[int(number)]): token for number, token in stay.items()}
        elif key in _TOKEN_LISTS and isinstance(value, list):
            found[key] = [token for token in value if kept.has(token)]
        elif key in _TOKEN_LISTS and isinstance(value, Mapping):
            found[key] = {name: token for name, token in value.items() if kept.has(token)}
        elif key.endswith("_token") and isinstance(value, (str, Mapping)) and not kept.has(value):
            raise ShapeError(f"{key} of the tokenizer's config names a token that would be removed; let it stay")
    return found


_WRITERS: dict[str, Callable[[Any, _Kept], Any]] = {
    "tokenizer_config.json": _token_config,
    "special_tokens_map.json": _token_config,
    "added_tokens.json": _numbered,
    "vocab.json": _numbered,
}
