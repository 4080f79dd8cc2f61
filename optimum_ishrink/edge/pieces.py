"""The files of a tokenizer with byte fallback as llama.cpp's converter reads them: a sentencepiece model, and types.

Without `tokenizer.model` the converter gives every token the same score, or takes the vocabulary for a byte-level
one. llama.cpp joins the two neighbours whose joint token has the best score; the tokenizers library joins by the rank
of the merge. Where all merges of a token follow each other in rank, as they do in what is made from a sentencepiece
model, these are the same, if scores fall with the rank.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.tokenizer_files import TOKENIZER_PATTERNS
from ..core.json_files import read_json, write_json
from ..errors import SourceError
from ..text.token_map import is_byte

MODEL_FILE = "tokenizer.model"
_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_READ_TOO = ("config.json", "generation_config.json")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE_TYPE = range(1, 7)


def write_piece_files(source: Path, folder: Path, rows: int, *, space_prefix: bool) -> None:
    """Write a folder that llama.cpp's converter reads a tokenizer from: the source's files and a sentencepiece model.

    Args:
        source: A checkpoint folder whose tokenizer.json is BPE with byte fallback.
        folder: An existing folder.
        rows: Rows of the embedding; those without a token are unused pieces.
        space_prefix: Whether text is read as if a space stood before it.

    Raises:
        SourceError: tokenizer.json has no token for unknown characters, or lacks the token of a byte.
    """
    for pattern in (*TOKENIZER_PATTERNS, *_READ_TOO):
        for path in source.glob(pattern):
            if path.is_file():
                target = folder / path.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
    contents = read_json(source / _TOKENIZER)
    (folder / MODEL_FILE).write_bytes(sentencepiece_model(contents, rows, source))
    config = read_json(source / _CONFIG) if (source / _CONFIG).is_file() else {}
    # The converter reads here which tokens are found in text before the model sees it.
    config["added_tokens_decoder"] = {str(token["id"]): token for token in contents["added_tokens"]}
    config["add_prefix_space"] = space_prefix
    write_json(folder / _CONFIG, config)
    (folder / "added_tokens.json").unlink(missing_ok=True)  # the same tokens, as older files have them


def sentencepiece_model(contents: Mapping[str, Any], rows: int, source: Path) -> bytes:
    """Return a sentencepiece model that splits text as a tokenizer.json does.

    Args:
        contents: The tokenizer.json.
        rows: Pieces of the model.
        source: Where it is from, for messages.

    Raises:
        SourceError: It has no token for unknown characters, or lacks the token of a byte.
    """
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2

    model = contents["model"]
    vocabulary: dict[str, int] = {
        **model["vocab"],
        **{token["content"]: token["id"] for token in contents["added_tokens"]},
    }
    unknown = vocabulary.get(model.get("unk_token") or "")
    if unknown is None:
        raise SourceError(
            f"{source / _TOKENIZER} has no unk_token, which llama.cpp needs for such a vocabulary; name one of its "
            "tokens there"
        )
    missing = [token for token in (f"<0x{byte:02X}>" for byte in range(256)) if token not in vocabulary]
    if missing:
        raise SourceError(
            f"{source / _TOKENIZER} has byte_fallback but no token {missing[0]}, so llama.cpp cannot read every text; "
            "restore it from the base model"
        )
    special = {token["id"] for token in contents["added_tokens"] if token.get("special")}
    plain = {token["id"] for token in contents["added_tokens"]} - special
    scores = piece_scores(model["merges"])
    written: Any = messages.ModelProto()
    by_row = {row: token for token, row in vocabulary.items()}
    for row in range(rows):
        piece = written.pieces.add()
        token = by_row.get(row)
        piece.piece = f"[PAD{row}]" if token is None else token
        piece.score = -10000.0 if token is None else scores.get(token, 0.0)
        piece.type = _NORMAL
        if token is None:
            piece.type = _UNUSED
        elif row == unknown:
            piece.type = _UNKNOWN
        elif row in special:
            piece.type = _CONTROL
        elif row in plain:
            piece.type = _USER_DEFINED
        elif is_byte(token):
            piece.type = _BYTE_TYPE
    trainer = written.trainer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = trainer.BPE, True, rows
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = unknown, -1, -1, -1
    written.normalizer_spec.name = "identity"
    written.normalizer_spec.add_dummy_prefix = written.normalizer_spec.remove_extra_whitespaces = False
    result: bytes = written.SerializeToString()
    return result


def piece_scores(merges: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Return a score for each token that merges make: the lower, the later its first merge comes.

    Args:
        merges: The merges by rank, each a text with a space or a list of two.
    """
    scores: dict[str, float] = {}
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        scores.setdefault(left + right, -float(len(scores)))
    return scores
