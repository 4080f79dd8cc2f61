from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from optimum_ishrink.edge.gguf_file import GgufFile
from optimum_ishrink.edge.shared_vocabulary import vocabulary_note
from optimum_ishrink.errors import RequestError


def header(folder: Path, name: str, tokens: Sequence[str], unused: Sequence[str] = ()) -> GgufFile:
    """A GGUF file with a vocabulary and no tensors."""
    gguf = pytest.importorskip("gguf")
    path = folder / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.UNUSED] * len(unused))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return GgufFile(path, name, 1, path.stat().st_size, "q8_0", len(tokens) + len(unused), "llama")


def test_one_model_or_one_vocabulary_needs_no_note(tmp_path: Path) -> None:
    files = [header(tmp_path, "a", ["the", "ße"]), header(tmp_path, "b", ["ße", "the"])]
    assert vocabulary_note(files[:1]) is None
    assert vocabulary_note(files) is None


def test_a_cut_vocabulary_is_noted(tmp_path: Path) -> None:
    base, small = header(tmp_path, "base", ["t", "h", "th"]), header(tmp_path, "small", ["h", "t"], ["[PAD2]"])
    expected = "small has 2 of the 3 tokens of base, so a text takes more of its tokens"
    for files in ([base, small], [small, base]):
        assert (vocabulary_note(files) or "").startswith(expected)


@pytest.mark.parametrize("other", [["t", "o"], ["o", "x", "y", "z"]])
def test_other_tokens_are_refused(tmp_path: Path, other: list[str]) -> None:
    files = [header(tmp_path, "base", ["t", "h", "th"]), header(tmp_path, "other", other)]
    with pytest.raises(
        RequestError, match="do not share a vocabulary: each has tokens that the other lacks.*without a base"
    ):
        vocabulary_note(files)
