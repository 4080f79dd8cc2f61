"""Whether tokens per second of two GGUF files can be compared."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..errors import RequestError
from .gguf_file import GgufFile


def vocabulary_note(files: Collection[GgufFile]) -> str | None:
    """Return what tokens per second leave out where one model's vocabulary was cut from the other's.

    Args:
        files: One model, or two that are timed in turn.

    Returns:
        A sentence; None if there is one model, or both have the same tokens.

    Raises:
        RequestError: Each of two models has tokens that the other lacks, so that a token is not the same work.
    """
    if len(files) < 2:
        return None
    found = sorted(((_tokens(file.path), file.name) for file in files), key=lambda each: len(each[0]))
    (few, smaller), (many, larger) = found
    if not few <= many:
        raise RequestError(
            f"{smaller} and {larger} do not share a vocabulary: each has tokens that the other lacks, so their tokens "
            "per second are not comparable; time each alone, without a base"
        )
    if few == many:
        return None
    return (
        f"{smaller} has {len(few):,} of the {len(many):,} tokens of {larger}, so a text takes more of its tokens, "
        "which tokens per second do not show; `ishrink evaluate` gives the tokens per byte of both"
    )


def _tokens(path: Path) -> frozenset[bytes]:
    """Return the tokens of a file, without those that only fill its rows up to a multiple."""
    from gguf import GGUFReader, TokenType

    reader = GGUFReader(path)
    field, kinds = reader.get_field("tokenizer.ggml.tokens"), reader.get_field("tokenizer.ggml.token_type")
    if field is None:
        return frozenset()
    unused = [False] * len(field.data) if kinds is None else [kind == TokenType.UNUSED for kind in kinds.contents()]
    places = (index for index, skip in zip(field.data, unused, strict=True) if not skip)
    return frozenset(bytes(field.parts[index]) for index in places)
