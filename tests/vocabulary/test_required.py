from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer

from optimum_ishrink.errors import SourceError
from optimum_ishrink.vocabulary import required as required_module
from optimum_ishrink.vocabulary.required import RESERVED, Required, find_required
from optimum_ishrink.vocabulary.rewrite import trimmed_contents
from optimum_ishrink.vocabulary.splits import find_splits
from optimum_ishrink.vocabulary.tokenizer_file import TokenizerFile, read_tokenizer_file
from tests.helpers.tokenizer_kinds import KINDS, save_kind

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m.role }} number] {{ m.content }}{% endfor %}{% if add_generation_prompt %}capital{% endif %}"
)


def required(folder: Path, **how: Any) -> tuple[TokenizerFile, Required]:
    file = read_tokenizer_file(folder)
    return file, find_required(file, find_splits(file), AutoTokenizer.from_pretrained(folder), **how)


def ids(folder: Path, text: str) -> set[int]:
    return {*AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]}


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_has_one_reason_and_all_are_closed(kind: str, tmp_path: Path) -> None:
    file, found = required(save_kind(kind, tmp_path))
    assert sum(map(len, found.reasons.values())) == len(found.ids)
    assert set(find_splits(file).close(found.ids).tolist()) == found.ids
    assert {*file.added.values()} <= found.ids
    if "level" in kind or "added" in kind:
        assert len(found.reasons["bytes"]) == 256
    elif "fallback" in kind:
        assert len(found.reasons["bytes"]) == 256
        assert file.vocabulary["▁"] in found.reasons["characters that nothing else writes"]
        assert file.vocabulary["й"] not in found.ids
    else:
        assert file.vocabulary["й"] in found.ids
    for text in ("0", "7", ".", '"', "—"):
        assert ids(tmp_path, text) <= found.ids


def test_the_least_likely_unigram_token_stays(tmp_path: Path) -> None:
    file, found = required(save_kind("unigram with fallback", tmp_path))
    assert int(file.scores.argmin()) in found.ids


@settings(max_examples=60)
@given(
    pieces=st.dictionaries(
        st.text("abcé▁", min_size=1, max_size=5), st.sampled_from([0.0, -1.0, -1.5, -2.0, -7.0, -30.0]), max_size=14
    ),
    fallback=st.booleans(),
    texts=st.lists(st.text("abcdé ", max_size=12), max_size=4),
    data=st.data(),
)
def test_any_unigram_vocabulary_makes_the_same_tokens_with_those_that_stay(
    pieces: dict[str, float],
    fallback: bool,
    texts: list[str],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("random")
    written = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)] if fallback else []
    base = Tokenizer(models.Unigram([("<unk>", 0.0), *written, *pieces.items()], unk_id=0, byte_fallback=fallback))
    base.normalizer = normalizers.Replace(" ", "▁")
    base.save(str(folder / "tokenizer.json"))
    file = read_tokenizer_file(folder)
    found = find_required(file, find_splits(file), None)
    before = [base.encode(text).ids for text in texts]
    more = data.draw(st.sets(st.sampled_from(range(len(file.tokens)))))
    rows = np.array(sorted({*found.ids, *more}.union(*before)), dtype=np.int64)
    small = Tokenizer.from_str(json.dumps(trimmed_contents(file, rows)))
    for text, ids in zip(texts, before):
        assert rows[small.encode(text).ids].tolist() == ids
    without = Tokenizer.from_str(json.dumps(trimmed_contents(file, np.array(sorted(found.ids), dtype=np.int64))))
    for text, ids in zip(texts, before):
        unknown = [file.tokens[sorted(found.ids)[i]] for i in without.encode(text).ids].count("<unk>")
        assert bool(unknown) == (0 in ids), "what the base can write can be written without the others"


ODD = {"w": -20.0, "xcy": -20.0, "z": -20.0, "wx": -1.0, "yz": -1.0, "q": -3.0, "qq": -50.0, "qz": -4.0}
"""No token is a `c` alone. Unknown it costs 10 more than `qq`, so `w xcy z` (-60) is likelier than `wx c yz` (-62)."""


def test_what_is_unknown_goes_on_to_cost_as_much(tmp_path: Path) -> None:
    base = Tokenizer(models.Unigram([("<unk>", 0.0), *ODD.items()], unk_id=0))
    base.save(str(tmp_path / "tokenizer.json"))
    file = read_tokenizer_file(tmp_path)
    found = find_required(file, find_splits(file), None)
    assert base.encode("wxcyz").tokens == ["w", "xcy", "z"]
    assert [file.tokens[i] for i in sorted(found.ids)] == ["<unk>", "w", "xcy", "z", "wx", "yz", "q", "qq"]
    rows = np.array([i for i, token in enumerate(file.tokens) if token != "qq"])
    assert Tokenizer.from_str(json.dumps(trimmed_contents(file, rows))).encode("wxcyz").tokens == ["wx", "c", "yz"]


def test_reserved_tokens_may_go(tmp_path: Path) -> None:
    file, found = required(save_kind("added in the middle", tmp_path))
    _, fewer = required(tmp_path, drop_reserved=True)
    assert found.ids - fewer.ids == {file.added["<unused0>"], file.added["<unused1>"]}
    # One that a config names stays.
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": file.added["<unused0>"]}}))
    _, named = required(tmp_path, drop_reserved=True)
    assert found.ids - named.ids == {file.added["<unused1>"]}


@pytest.mark.parametrize(
    ("token", "reserved"),
    [
        ("<unused7>", True),
        ("<|reserved_special_token_12|>", True),
        ("[unused3]", True),
        (">>UNUSED_10<<", True),
        ("<SPECIAL_20>", True),
        ("<|placeholder1|>", True),
        ("<|dummy_3|>", True),
        ("<madeupword0>", True),
        ("<|im_start|>", False),
        ("<extra_id_0>", False),
        ("<|reserved|>", False),
        ("unused7", False),
    ],
)
def test_reserved_names(token: str, reserved: bool) -> None:
    assert bool(RESERVED.fullmatch(token)) == reserved


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"eos_token_id": [400, 401]}),
        ("generation_config.json", {"forced_bos_token_id": 400, "decoder_start_token_id": 401}),
    ],
)
def test_ids_in_configs_stay(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    save_kind("byte-level", tmp_path)
    (tmp_path / name).write_text(json.dumps({**values, "pad_token_id": 900}))
    _, found = required(tmp_path)
    assert {400, 401, 900} <= found.reasons["named in the configs"]  # 900 is a row without a token


def test_tokens_that_the_tokenizers_configs_name_stay(tmp_path: Path) -> None:
    save_kind("byte-level", tmp_path)
    file = read_tokenizer_file(tmp_path)
    listed = {
        "mask_token": {"content": "Ġnumber"},
        "additional_special_tokens": ["Ġcapital"],
        "extra_special_tokens": {"x": "Ġletter"},
    }
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(listed))
    found = find_required(file, find_splits(file), None)
    assert {file.vocabulary[token] for token in ("Ġnumber", "Ġcapital", "Ġletter")} <= found.ids


@pytest.mark.parametrize("kind", ["unigram", "byte fallback, like Llama 2"])
def test_tokens_of_the_post_processor_stay(kind: str, tmp_path: Path) -> None:
    save_kind(kind, tmp_path)
    path = tmp_path / "tokenizer.json"
    contents = json.loads(path.read_text())
    contents["added_tokens"] = []
    contents["post_processor"] = {"type": "Sequence", "processors": [contents["post_processor"]]}
    path.write_text(json.dumps(contents))
    (tmp_path / "tokenizer_config.json").unlink()
    file = read_tokenizer_file(tmp_path)
    found = find_required(file, find_splits(file), None)
    assert file.vocabulary["<s>"] in found.reasons["named in the configs"]


def test_what_the_chat_template_writes_stays(tmp_path: Path) -> None:
    save_kind("byte-level", tmp_path, chat_template=TEMPLATE)
    _, found = required(tmp_path)
    assert ids(tmp_path, "[user number] Hi!") | ids(tmp_path, "OK.capital") <= found.ids
    (tmp_path / "chat_template.jinja").unlink()
    _, without = required(tmp_path)
    assert len(found.reasons["of the chat template"]) > 5 and not without.reasons["of the chat template"]


def test_every_template_of_several_counts(tmp_path: Path) -> None:
    save_kind("byte-level", tmp_path, chat_template={"default": "{{ bos_token }}", "tool_use": "{{ tools }} letter"})
    assert ids(tmp_path, " letter") <= required(tmp_path)[1].ids


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_the_template_of_a_processor_counts(name: str, tmp_path: Path) -> None:
    save_kind("byte-level", tmp_path)
    assert not required(tmp_path)[1].reasons["of the chat template"]
    parts = "{% for m in messages %}{{ m.content[0].text + ' letter' }}{% endfor %}"  # not of a turn that is one text
    (tmp_path / name).write_text(json.dumps({"chat_template": parts}))
    assert ids(tmp_path, "OK. letter") <= required(tmp_path)[1].ids


def test_a_template_that_writes_the_date_needs_the_same_on_every_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_kind("byte-level", tmp_path, chat_template="{{ strftime_now('%d %B %Y') }}")
    opened = AutoTokenizer.from_pretrained(tmp_path)
    _, found = required(tmp_path)
    for month in ("January", "May", "September"):
        assert {*opened(f" {month} ")["input_ids"]} <= found.ids
    monkeypatch.setattr(required_module, "_DATES", required_module._DATES[:1])
    assert required(tmp_path)[1].ids < found.ids


def test_a_template_that_writes_nothing_is_refused(tmp_path: Path) -> None:
    save_kind("byte-level", tmp_path, chat_template="{{ raise_exception('never') }}")
    with pytest.raises(
        SourceError, match=r"^the chat template writes no conversation \(never\).*; mend it, or remove"
    ):
        required(tmp_path)


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    save_kind("byte-level", tmp_path)
    (tmp_path / "special_tokens_map.json").write_text("[]")
    file = read_tokenizer_file(tmp_path)
    with pytest.raises(SourceError, match="is not a JSON object; restore it from the base model"):
        find_required(file, find_splits(file), None)


def test_further_punctuation(tmp_path: Path) -> None:
    file, found = required(save_kind("byte fallback, like Gemma", tmp_path))
    _, more = required(tmp_path, punctuation="¿¡")
    assert more.ids - found.ids == {file.vocabulary["¿"], file.vocabulary["¡"]}


def test_the_description_says_how_many_and_why() -> None:
    found = Required({"bytes": frozenset(range(256)), "digits": frozenset({300, 301}), "whitespace": frozenset()})
    assert found.describe() == "258: 256 bytes, 2 digits"
