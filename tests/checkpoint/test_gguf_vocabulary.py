from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from optimum_ishrink.checkpoint.config_source import open_config
from optimum_ishrink.checkpoint.gguf_reading import save_gguf_config
from optimum_ishrink.checkpoint.gguf_vocabulary import _with_offsets
from optimum_ishrink.checkpoint.known_pre_tokenizers import KnownPreTokenizer, known_pre_tokenizers
from optimum_ishrink.errors import SourceError
from tests.helpers.app_site import write_tiny

BEGIN, END, USER, THINK = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|user|>", "<思>"
TEXT = Path(__file__).read_text()
ORDINARY, CONTROL, USER_DEFINED = 1, 3, 4


def tokenizer_of(known: KnownPreTokenizer) -> Any:
    """Train a tokenizer with a pre-tokenizer, and with special tokens that are not written in the byte alphabet."""
    raw = json.loads(Tokenizer(models.BPE()).to_str())
    raw |= {"normalizer": known.normalizer, "pre_tokenizer": _with_offsets(known.pre_tokenizer)}
    raw["model"]["ignore_merges"] = known.ignore_merges
    found = Tokenizer.from_str(json.dumps(raw))
    found.decoder = decoders.ByteLevel()
    specials = [AddedToken(each, normalized=False, special=each != THINK) for each in (BEGIN, END, USER, THINK)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator([TEXT, *(f" {number} {number * 7}" for number in range(200))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=found, bos_token=BEGIN, eos_token=END)


def write(path: Path, tokenizer: Any, pre: str | None, **values: Any) -> Path:
    """Write what llama.cpp's converter writes of a tokenizer."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    kinds = {BEGIN: CONTROL, END: CONTROL, USER: CONTROL, THINK: USER_DEFINED}
    header = {
        "llama__feed_forward_length": 48,
        "llama__attention__layer_norm_rms_epsilon": 1e-5,
        "tokenizer__ggml__pre": pre,
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__token_type": [kinds.get(token, ORDINARY) for token in tokens],
        "tokenizer__ggml__merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer__ggml__bos_token_id": tokenizer.bos_token_id,
        "tokenizer__ggml__eos_token_id": tokenizer.eos_token_id,
    }
    return write_tiny(path, **{**header, **values})


def known_as(name: str) -> KnownPreTokenizer:
    """The pre-tokenizer of a name, without NFC where there are two."""
    return min((each for each in known_pre_tokenizers() if name in each.names), key=lambda each: bool(each.normalizer))


@pytest.mark.parametrize("name", sorted({name for known in known_pre_tokenizers() for name in known.names}))
def test_text_has_the_same_tokens(name: str, tmp_path: Path) -> None:
    known = known_as(name)
    own = tokenizer_of(known)
    write(tmp_path / "a.gguf", own, name)
    source = open_config(tmp_path, gguf_file="a.gguf", tokenizer=True)
    read = AutoTokenizer.from_pretrained(source.folder)
    text = f"{BEGIN}{USER}{TEXT} foo(bar) 12345 x=1;\n\n    y é你{THINK}{END}"
    assert read(text, add_special_tokens=False)["input_ids"] == own(text, add_special_tokens=False)["input_ids"]
    assert len(read) == len(own)
    assert (read.bos_token_id, read.eos_token_id) == (own.bos_token_id, own.eos_token_id)
    assert read.decode(read("foo 12").input_ids, skip_special_tokens=True) == "foo 12"
    assert read.decode([own.convert_tokens_to_ids(THINK)], skip_special_tokens=True) == THINK


def test_a_vocabulary_without_a_named_pre_tokenizer_is_read_as_before(tmp_path: Path) -> None:
    own = tokenizer_of(known_pre_tokenizers()[0])
    for name in (None, "default"):
        write(tmp_path / "a.gguf", own, name)
        source = open_config(tmp_path, gguf_file="a.gguf", tokenizer=True)
        assert source.load_tokenizer()("foo(bar)")["input_ids"] == own("foo(bar)")["input_ids"]


@pytest.mark.parametrize(
    ("pre", "values", "words"),
    [
        ("nonesuch", {}, "the pre-tokenizer 'nonesuch'"),
        ("gpt-2", {"tokenizer__ggml__eos_token_id": 0}, None),
        (
            "gpt-2",
            {"tokenizer__ggml__token_type": None},
            "the bos token at id 0, where its tokenizer would have another",
        ),
    ],
)
def test_a_tokenizer_that_would_be_another_is_refused(
    pre: str, values: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    own = tokenizer_of(known_pre_tokenizers()[0])
    write(tmp_path / "a.gguf", own, pre, **values)
    if words is None:
        save_gguf_config(tmp_path, "a.gguf", tmp_path, tokenizer=True)
        return
    with pytest.raises(SourceError, match=rf"a\.gguf has {words}, which transformers .* does not read from GGUF"):
        save_gguf_config(tmp_path, "a.gguf", tmp_path, tokenizer=True)


def test_kinds_of_tokens_are_those_of_the_gguf_package() -> None:
    kinds = gguf.TokenType
    assert (kinds.NORMAL, kinds.CONTROL, kinds.USER_DEFINED) == (ORDINARY, CONTROL, USER_DEFINED)
