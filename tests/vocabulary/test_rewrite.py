from __future__ import annotations

import json
import stat
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from optimum_ishrink.errors import ShapeError, SourceError, VerificationError
from optimum_ishrink.vocabulary import rewrite
from optimum_ishrink.vocabulary.required import find_required
from optimum_ishrink.vocabulary.rewrite import write_trimmed_tokenizer
from optimum_ishrink.vocabulary.splits import find_splits
from optimum_ishrink.vocabulary.tokenizer_file import read_tokenizer_file
from tests.helpers.tokenizer_kinds import (
    KINDS,
    closed_rows,
    lines,
    save_kind,
    sentencepiece_model,
    tokenizer_of,
)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def analysed(kind: str, folder: Path) -> Any:
    source = save_kind(kind, folder)
    file = read_tokenizer_file(source)
    splits = find_splits(file)
    return source, file, splits, find_required(file, splits, None)


@pytest.fixture(scope="module")
def base(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return analysed(kind, tmp_path_factory.mktemp("base"))


def trimmed(source: Path, folder: Path, rows: list[int]) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    assert write_trimmed_tokenizer(source, folder, rows) == []
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([word for line in lines() for word in line.split(" ")]), max_size=12).map(" ".join),
    st.text(" \n\t▁Ġaé本<>|s/0", max_size=30),
)


@settings(max_examples=15)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), seed=st.integers(0, 99), share=st.floats(0, 0.4))
def test_any_text_decodes_as_with_the_base(
    kind: str, base: Any, tmp_path_factory: pytest.TempPathFactory, texts: list[str], seed: int, share: float
) -> None:
    source, _, splits, required = base
    small = trimmed(source, tmp_path_factory.mktemp("small"), closed_rows(splits, required, [], seed, share))
    large = tokenizer_of(kind)
    for text in texts:
        expected = large.decode(large.encode(text).ids)
        found = small.decode(small.encode(text).ids)
        assert found == expected
        assert found != text or expected == text


@settings(max_examples=15)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), seed=st.integers(0, 99), share=st.floats(0, 0.3))
def test_text_whose_tokens_all_stay_is_tokenised_as_before(
    kind: str, base: Any, tmp_path_factory: pytest.TempPathFactory, texts: list[str], seed: int, share: float
) -> None:
    source, _, splits, required = base
    large = tokenizer_of(kind)
    before = [large.encode(text).ids for text in texts]
    rows = closed_rows(splits, required, [i for ids in before for i in ids], seed, share)
    small = trimmed(source, tmp_path_factory.mktemp("small"), rows)
    for text, ids in zip(texts, before):
        assert [rows[i] for i in small.encode(text).ids] == ids


def test_the_estimate_of_pieces_is_near_what_the_tokenizer_finds(base: Any, tmp_path: Path) -> None:
    source, file, splits, required = base
    rows = closed_rows(splits, required, [], 1, 0.2)
    small = trimmed(source, tmp_path / "small", rows)
    kept = np.isin(np.arange(len(splits.left)), rows)
    estimated = splits.pieces(kept)
    found = [(len(small.model.tokenize(t)), estimated[i]) for t, i in file.vocabulary.items() if not kept[i]]
    assert sum(count for count, _ in found) == pytest.approx(sum(count for _, count in found), rel=0.15)


def test_auto_tokenizer_opens_it_fast_and_slow(kind: str, base: Any, tmp_path: Path) -> None:
    source, _, splits, required = base
    text = "The letter a, number 97.</s> Naïve “quotes”"
    large = AutoTokenizer.from_pretrained(source)
    rows = closed_rows(splits, required, large(text)["input_ids"], 0, 0.1)
    trimmed(source, tmp_path / "small", rows)
    for fast in (True, False):
        small = AutoTokenizer.from_pretrained(tmp_path / "small", use_fast=fast)
        assert len(small) == sum(1 for row in rows if row < len(large))
        assert [rows[i] for i in small(text)["input_ids"]] == large(text)["input_ids"]
        assert [rows[i] for i in small.all_special_ids] == large.all_special_ids
        assert small.eos_token == large.eos_token and rows[small.eos_token_id] == large.eos_token_id
        again = tmp_path / f"again-{fast}"
        small.save_pretrained(again)
        assert AutoTokenizer.from_pretrained(again)(text) == small(text)


def test_tokens_keep_their_strings_and_their_order(base: Any, tmp_path: Path) -> None:
    source, file, splits, required = base
    rows = closed_rows(splits, required, [], 3, 0.2)
    trimmed(source, tmp_path / "small", rows)
    assert read_tokenizer_file(tmp_path / "small").tokens == tuple(file.tokens[row] for row in rows)


def test_every_token_that_stays_is_still_reachable(base: Any, tmp_path: Path) -> None:
    source, _, splits, required = base
    rows = closed_rows(splits, required, [], 4, 0.2)
    trimmed(source, tmp_path / "small", rows)
    after = find_splits(read_tokenizer_file(tmp_path / "small"))
    assert after.reachable.tolist() == splits.reachable[rows].tolist()


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    source = tmp_path / "llama"
    save_kind("byte fallback, like Llama 2", source)
    (source / "tokenizer.model").write_bytes(sentencepiece_model("bpe", True, 1600))
    file = read_tokenizer_file(source)
    splits = find_splits(file)
    return source, closed_rows(splits, find_required(file, splits, None), [], 5, 0.2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trimmed tokenizer.json, its rows, and the trimmed sentencepiece model beside it."""
    source = save_kind("byte fallback, like Llama 2", tmp_path_factory.mktemp("llama"))
    (source / "tokenizer.model").write_bytes(sentencepiece_model("bpe", True, 1600))
    file = read_tokenizer_file(source)
    splits = find_splits(file)
    rows = closed_rows(splits, find_required(file, splits, None), [], 5, 0.2)
    folder = tmp_path_factory.mktemp("small")
    small = trimmed(source, folder, rows)
    return small, rows, sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@settings(max_examples=100)
@given(text=TEXTS)
def test_a_sentencepiece_model_is_trimmed_alike(pair: Any, text: str) -> None:
    small, rows, slow = pair
    assert slow.get_piece_size() == len(rows)
    assert (slow.unk_id(), slow.bos_id(), slow.eos_id(), slow.pad_id()) == (0, 1, 2, -1)
    # The fast one alone finds the names of special tokens in a text, and the slow one begins no empty text.
    if text and not any(name in text for name in ("<unk>", "<s>", "</s>", "\0")):
        assert slow.encode(text) == small.encode(text, add_special_tokens=False).ids


def test_a_sentencepiece_model_with_other_numbers_is_left_out(llama: Any, tmp_path: Path) -> None:
    source, rows = llama
    (source / "tokenizer.model").write_bytes(sentencepiece_model("bpe", True, 1500))
    (source / "spiece.model").write_bytes(b"no model")
    (source / "empty.model").write_bytes(b"")
    (tmp_path / "out").mkdir()
    assert write_trimmed_tokenizer(source, tmp_path / "out", rows) == [
        "empty.model is left out: it is not a sentencepiece model",
        "spiece.model is left out: it is not a sentencepiece model",
        "tokenizer.model is left out: its pieces are numbered otherwise than in tokenizer.json",
    ]
    assert not list((tmp_path / "out").glob("*.model"))


def test_sentencepiece_may_be_missing(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, rows = llama
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
    (tmp_path / "out").mkdir()
    (note,) = write_trimmed_tokenizer(source, tmp_path / "out", rows)
    assert note == (
        "tokenizer.model is left out: the packages sentencepiece and protobuf, which write it, are not installed"
    )


@pytest.fixture
def gpt2(tmp_path: Path) -> Any:
    """A byte-level tokenizer with every file that GPT-2's kind has had."""
    source = tmp_path / "gpt2"
    save_kind("added in the middle", source)
    contents = json.loads((source / "tokenizer.json").read_text())
    model = contents["model"]
    (source / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    (source / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""])
    )
    added = {token["content"]: token["id"] for token in contents["added_tokens"]}
    (source / "added_tokens.json").write_text(json.dumps(added))
    (source / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "</s>"}, "additional_special_tokens": ["<unused0>", "<|end|>"]})
    )
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in contents["added_tokens"]
    }
    config |= {"additional_special_tokens": ["<unused0>", "<|end|>"], "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    config["extra_special_tokens"] = {"end_token": "<|end|>", "idle": "<unused1>"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}\n")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}\n")
    file = read_tokenizer_file(source)
    splits = find_splits(file)
    return source, closed_rows(splits, find_required(file, splits, None, drop_reserved=True), [], 6, 0.2)


def test_every_file_says_the_same(gpt2: Any, tmp_path: Path) -> None:
    source, rows = gpt2
    out = tmp_path / "out"
    out.mkdir()
    known = read_tokenizer_file(source)
    rows = [row for row in rows if known.tokens[row] not in ("<unused0>", "<unused1>")]
    assert write_trimmed_tokenizer(source, out, rows) == []
    read = {path.name: json.loads(path.read_text()) for path in out.glob("*.json")}
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    numbers = tokenizer.get_vocab()
    assert [known.tokens[row] for row in rows] == sorted(numbers, key=numbers.__getitem__)
    assert read["vocab.json"] == {token: i for token, i in numbers.items() if token in known.vocabulary}
    added = {token: i for token, i in numbers.items() if token in known.added}
    assert read["added_tokens.json"] == added and "<unused0>" not in added
    decoder = read["tokenizer_config.json"]["added_tokens_decoder"]
    assert {token["content"]: int(number) for number, token in decoder.items()} == added
    assert read["tokenizer_config.json"]["additional_special_tokens"] == ["<|end|>"]
    assert read["tokenizer_config.json"]["extra_special_tokens"] == {"end_token": "<|end|>"}
    assert "auto_map" not in read["tokenizer_config.json"]
    assert read["special_tokens_map.json"] == {
        "eos_token": {"content": "</s>"},
        "additional_special_tokens": ["<|end|>"],
    }
    slow = models.BPE.from_file(str(out / "vocab.json"), str(out / "merges.txt"))
    for line in lines():
        word = line.split()[0]
        assert [t.id for t in slow.tokenize(word)] == [t.id for t in tokenizer.model.tokenize(word)]
    assert (out / "merges.txt").read_text().startswith("#version: 0.2\n")
    for template in ("chat_template.jinja", "additional_chat_templates/tools.jinja"):
        assert (out / template).read_bytes() == (source / template).read_bytes()
    assert {path.relative_to(out) for path in out.rglob("*")} == {
        path.relative_to(source) for path in source.rglob("*")
    }


def test_what_cannot_be_rewritten_is_left_out_with_a_line(gpt2: Any, tmp_path: Path) -> None:
    source, rows = gpt2
    (source / "tekken.json").write_text("{}")
    (source / "qwen.tiktoken").write_text("IQ== 0")
    (source / "tokenizer.py").write_text("")
    (source / "vocab.json").write_text('{"a": 7}')
    out = tmp_path / "out"
    out.mkdir()
    assert write_trimmed_tokenizer(source, out, rows) == [
        "qwen.tiktoken is left out: no library writes this format for fewer tokens",
        "tekken.json is left out: no library writes this format for fewer tokens",
        "vocab.json is left out: its ids are not those of tokenizer.json",
    ]
    assert not {"qwen.tiktoken", "tekken.json", "tokenizer.py", "vocab.json"} & {path.name for path in out.iterdir()}


def test_files_have_normal_permissions_and_readable_characters(llama: Any, tmp_path: Path) -> None:
    source, rows = llama
    out = tmp_path / "out"
    out.mkdir()
    write_trimmed_tokenizer(source, out, rows)
    (tmp_path / "plain").write_text("")
    for path in out.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert '"▁"' in (out / "tokenizer.json").read_text(encoding="utf-8")


def test_merges_written_as_texts_stay_texts(tmp_path: Path) -> None:
    source = save_kind("byte-level", tmp_path / "base")
    contents = json.loads((source / "tokenizer.json").read_text())
    contents["model"]["merges"] = [" ".join(merge) for merge in contents["model"]["merges"]]
    (source / "tokenizer.json").write_text(json.dumps(contents))
    small = trimmed(source, tmp_path / "small", list(range(600)))
    merges = json.loads((tmp_path / "small" / "tokenizer.json").read_text())["model"]["merges"]
    assert merges and all(isinstance(merge, str) for merge in merges)
    assert small.get_vocab_size() == 600


def test_padding_rows_at_the_end_are_rows_without_a_token(tmp_path: Path) -> None:
    source = save_kind("added in the middle", tmp_path / "base")
    number = len(read_tokenizer_file(source).tokens)
    small = trimmed(source, tmp_path / "small", [*range(number), number + 3, number + 9])
    assert small.get_vocab() == tokenizer_of("added in the middle").get_vocab()


def test_padding_in_the_tokenizer_is_renumbered(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("added in the middle")
    tokenizer.enable_padding(pad_id=302, pad_token="</s>")
    (tmp_path / "base").mkdir()
    tokenizer.save(str(tmp_path / "base" / "tokenizer.json"))
    small = trimmed(tmp_path / "base", tmp_path / "small", [*range(200), *range(300, 303)])
    assert small.padding is not None and small.padding["pad_id"] == 202 == small.token_to_id("</s>")


@pytest.mark.parametrize("rows", [[], [3, 2], [1, 1], [-1, 0]])
def test_rows_have_to_ascend(rows: list[int], tmp_path: Path) -> None:
    source = save_kind("byte-level", tmp_path / "base")
    with pytest.raises(ShapeError, match="are not ascending row numbers"):
        write_trimmed_tokenizer(source, tmp_path, rows)


def _without(kind: str, token: str, folder: Path) -> list[int]:
    file = read_tokenizer_file(save_kind(kind, folder))
    return [row for row, name in enumerate(file.tokens) if name != token]


@pytest.mark.parametrize(
    ("kind", "token", "reason"),
    [
        ("byte fallback, like Llama 2", "<s>", "the post-processor names token 1"),
        ("unigram", "</s>", "the post-processor names token 2"),
        ("unigram with fallback", "<unk>", "the model's unk_id names token 0"),
        ("characters", "<unk>", "the model's unk_token names token 0"),
        ("byte-level", "</s>", "eos_token of the tokenizer's config"),
    ],
)
def test_what_the_files_name_may_not_go(kind: str, token: str, reason: str, tmp_path: Path) -> None:
    rows = _without(kind, token, tmp_path / "base")
    with pytest.raises(ShapeError, match=f"^{reason}.* removed; let it stay"):
        write_trimmed_tokenizer(tmp_path / "base", tmp_path, rows)


def test_other_ids_in_the_tokenizers_config_are_refused(gpt2: Any, tmp_path: Path) -> None:
    source, rows = gpt2
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["5"] = {"content": "</s>"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match="has other ids than tokenizer.json; write both anew with"):
        write_trimmed_tokenizer(source, tmp_path / "out", rows)


def test_a_padding_token_may_not_go(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte-level")
    tokenizer.enable_padding(pad_id=2, pad_token="</s>")
    (tmp_path / "base").mkdir()
    tokenizer.save(str(tmp_path / "base" / "tokenizer.json"))
    with pytest.raises(ShapeError, match="^padding names token 2"):
        write_trimmed_tokenizer(tmp_path / "base", tmp_path, [0, 1, *range(3, 700)])


def test_rows_without_a_token_may_not_lie_between(tmp_path: Path) -> None:
    contents = json.loads(tokenizer_of("byte-level").to_str())
    contents["model"]["vocab"]["zz"] = 705  # 700 to 704 are no tokens
    contents["added_tokens"].append({**contents["added_tokens"][0], "id": 701, "content": "<|end|>"})
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "tokenizer.json").write_text(json.dumps(contents))
    with pytest.raises(ShapeError, match="^rows without a token lie between"):
        write_trimmed_tokenizer(tmp_path / "base", tmp_path, [*range(600), 701, 705])


def test_what_the_library_reads_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_kind("byte-level", tmp_path / "base")
    original = rewrite.trimmed_contents

    def broken(tokenizer: Any, rows: Any) -> dict[str, Any]:
        contents = original(tokenizer, rows)
        contents["model"]["vocab"]["a"], contents["model"]["vocab"]["b"] = (
            contents["model"]["vocab"]["b"],
            contents["model"]["vocab"]["a"],
        )
        return contents

    monkeypatch.setattr(rewrite, "trimmed_contents", broken)
    with pytest.raises(VerificationError, match="^the trimmed tokenizer.json is read with '[ab]' as"):
        write_trimmed_tokenizer(source, tmp_path, list(range(700)))
    monkeypatch.setattr(rewrite, "trimmed_contents", lambda tokenizer, rows: {"model": 1})
    with pytest.raises(VerificationError, match="^the tokenizers library cannot read"):
        write_trimmed_tokenizer(source, tmp_path, list(range(700)))
