from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from optimum_ishrink.vocabulary.token_bytes import byte_alphabet, token_bytes, token_texts
from optimum_ishrink.vocabulary.tokenizer_file import read_tokenizer_file
from tests.helpers.tokenizer_kinds import KINDS, lines, save_kind, tokenizer_of


def test_the_alphabet_is_the_librarys() -> None:
    assert {*byte_alphabet()} == {*pre_tokenizers.ByteLevel.alphabet()}
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("\0\t\n !", "é本🦊", "\x7f\xad"):
        ((written, _),) = split.pre_tokenize_str(text)
        assert bytes(byte_alphabet()[c] for c in written) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_texts_tokens_are_its_own(kind: str, tmp_path: Path) -> None:
    contents = token_bytes(read_tokenizer_file(save_kind(kind, tmp_path)))
    tokenizer = tokenizer_of(kind)
    for line in map(str.strip, lines()):
        found = b"".join(contents[i] for i in tokenizer.encode(line, add_special_tokens=False).ids)
        assert found.removeprefix(b" ") == line.encode()


def test_texts_are_none_where_a_token_is_a_part_of_a_character(tmp_path: Path) -> None:
    file = read_tokenizer_file(save_kind("byte-level", tmp_path))
    texts = token_texts(file)
    assert texts[file.vocabulary["Ġis"]] == " is"
    assert texts[file.vocabulary["Ã"]] is None
    assert texts[file.added["</s>"]] == "</s>"


def test_byte_tokens_are_bytes_and_marks_are_spaces(tmp_path: Path) -> None:
    file = read_tokenizer_file(save_kind("byte fallback, like Gemma", tmp_path))
    contents = token_bytes(file)
    assert contents[file.vocabulary["<0xE2>"]] == b"\xe2"
    assert contents[file.vocabulary["▁"]] == b" "
