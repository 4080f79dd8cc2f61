from __future__ import annotations

import pytest
import torch

from optimum_ishrink.chat.streaming import PieceReader, TokenClock
from tests.helpers.tiny import tiny_tokenizer
from tests.helpers.trained_vocabulary import trained_tokenizer

TEXTS = [
    "",
    "Plain words, with  spaces\n\nand lines.",
    "Füße, 你好, нет, 👩‍🚀 and e\u0301",
    " leading space",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text(text: str) -> None:
    for tokenizer in (tiny_tokenizer(), trained_tokenizer()):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        reader = PieceReader(tokenizer)
        pieces = [reader.add(token) for token in tokens]
        assert all("\ufffd" not in piece for piece in pieces)
        assert "".join(pieces) + reader.close() == text == tokenizer.decode(tokens)


def test_a_broken_character_comes_at_the_end() -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer("né", add_special_tokens=False)["input_ids"][:-1]
    reader = PieceReader(tokenizer)
    assert [reader.add(token) for token in tokens] == ["n", ""]
    assert reader.close() == "\ufffd"
    assert reader.close() == ""


def test_special_tokens_are_no_text_and_the_prompt_is_passed_over() -> None:
    tokenizer = tiny_tokenizer()
    heard: list[str] = []
    clock = TokenClock(tokenizer, heard.append)
    clock.put(torch.tensor([tokenizer("What?")["input_ids"]]))
    for token in [*tokenizer("Ab", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]:
        clock.put(torch.tensor([token]))
    clock.end()
    assert heard == ["A", "b"]
    assert clock.text == "Ab"
    assert len(clock.tokens) == len(clock.times) == 3
    assert clock.times == sorted(clock.times)
