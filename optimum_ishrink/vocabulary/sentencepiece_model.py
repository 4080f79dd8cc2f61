"""A sentencepiece model with fewer pieces."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .tokenizer_file import TokenizerFile


def trimmed_sentencepiece(data: bytes, tokenizer: TokenizerFile, rows: Sequence[int]) -> bytes | str:
    """Return a sentencepiece model with some of its pieces.

    Its pieces are numbered by their order, which stays. Pieces, scores and the normaliser are the same.

    Args:
        data: The model.
        tokenizer: The tokenizer.json beside it.
        rows: The rows that stay, ascending.

    Returns:
        The model, or why it cannot be written.
    """
    try:
        messages: Any = import_module("sentencepiece.sentencepiece_model_pb2")  # its stubs lack what it generates
    except ImportError:
        return "the packages sentencepiece and protobuf, which write it, are not installed"
    model: Any = messages.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # protobuf's own error, which has moved between versions
        return "it is not a sentencepiece model"
    if not model.pieces:
        return "it is not a sentencepiece model"
    pieces = list(model.pieces)
    if len(pieces) > len(tokenizer.tokens) or any(
        piece.piece != token for piece, token in zip(pieces, tokenizer.tokens, strict=False)
    ):
        return "its pieces are numbered otherwise than in tokenizer.json"
    kept = [pieces[row] for row in rows if row < len(pieces)]
    special = {name: getattr(model.trainer_spec, name) for name in ("unk_id", "bos_id", "eos_id", "pad_id")}
    new = {int(row): number for number, row in enumerate(rows) if row < len(pieces)}
    del model.pieces[:]
    model.pieces.extend(kept)
    model.trainer_spec.vocab_size = len(kept)
    for name, number in special.items():
        if number >= 0:
            setattr(model.trainer_spec, name, new.get(number, -1))
    result: bytes = model.SerializeToString()
    return result
