"""The stage that chooses which tokens stay."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.errors import DataError, RequestError, SourceError
from optimum_ishrink.report.vocabulary import VocabularyRecord
from optimum_ishrink.text.sources import TextSource, parse_sources
from optimum_ishrink.vocabulary import languages, stage
from optimum_ishrink.vocabulary.rewrite import write_trimmed_tokenizer
from optimum_ishrink.vocabulary.stage import Vocabulary, measure_tokens
from tests.helpers.tiny import edit_json
from tests.helpers.trained_vocabulary import END, ROWS, TOKENS, save_trained, trained_tokenizer

RUSSIAN = "Быстрая коричневая лиса прыгает через ленивую собаку. " * 20


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the most frequent words alone: all of them take seconds."""
    whole = languages.words
    monkeypatch.setattr(languages, "words", lambda language: dict(islice(whole(language).items(), 2_000)))


def vocabulary(folder: Path, calibration: str = "self", **options: Any) -> Vocabulary:
    config = IShrinkConfig(**{"vocab_languages": ["none"], **options})
    return Vocabulary(open_source(folder), config, parse_sources(calibration))


def recorded(found: Vocabulary, size: int, folder: Path, **how: Any) -> VocabularyRecord:
    order = found.order()
    folder.mkdir()
    write_trimmed_tokenizer(found.source.folder, folder, order.rows(size))
    return found.record(order, order.rows(size), Tokenizer.from_file(str(folder / "tokenizer.json")), **how)


def test_what_a_text_needs_goes_last(worded_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the import statement of a class " * 200)
    found = vocabulary(worded_folder, vocab_text=[str(text)])
    order = found.order()
    needed = set(trained_tokenizer()(text.read_text())["input_ids"])
    assert needed <= {*order.rows(TOKENS - len(order.order) // 2)}
    assert order.num_tokens == TOKENS
    assert not {*order.order.tolist()} & found.required.ids
    assert {*order.rows(TOKENS - len(order.order))} == found.required.ids
    assert np.isclose(order.extra[len(order.order) // 2], 0, atol=0.05)


def test_text_that_the_model_wrote_counts(worded_folder: Path) -> None:
    found = vocabulary(worded_folder)
    last = found.order().order[0]
    again = found.order(torch.full((4, 300), int(last)))
    assert again.order.tolist().index(last) > len(again.order) // 2


def test_the_calibration_text_counts_once(worded_folder: Path, text_file: Path) -> None:
    found = vocabulary(worded_folder, str(text_file), vocab_text=[str(text_file), "pydoc"])
    assert [text.label for text in found.texts] == ["words.txt", "Python reference topics"]


def test_a_language_counts(worded_folder: Path) -> None:
    found = vocabulary(worded_folder, vocab_languages=["en"])
    english, plain = found.order().order.tolist(), vocabulary(worded_folder).order().order.tolist()
    assert english != plain
    for word in (" people", " about", " because"):
        ids = trained_tokenizer()(word, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] in english:
            assert english.index(ids[0]) > len(english) // 2


def test_what_is_named_stays(worded_folder: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep.txt"
    keep.write_text("descriptor\n\nasynchronous generator\n")
    found = vocabulary(worded_folder, vocab_keep=str(keep))
    ids = trained_tokenizer()(" descriptor asynchronous generator", add_special_tokens=False)["input_ids"]
    assert {*ids} <= found.required.ids
    assert found.required.reasons["named by vocab_keep"]
    least = {*found.order().rows(len(found.required.ids))}
    assert {*ids} <= least
    assert found.splits.close(found.required.ids).tolist() == sorted(found.required.ids)


@pytest.mark.parametrize(
    ("contents", "message"),
    [("", "is empty; name one that has a string in each line"), (None, "keep.txt does not exist")],
)
def test_a_list_that_cannot_be_used(worded_folder: Path, tmp_path: Path, contents: str | None, message: str) -> None:
    if contents is not None:
        (tmp_path / "keep.txt").write_text(contents)
    with pytest.raises(DataError, match=message):
        vocabulary(worded_folder, vocab_keep=str(tmp_path / "keep.txt")).order()


def test_a_language_without_words(worded_folder: Path) -> None:
    with pytest.raises(RequestError, match="unknown language with word frequencies 'xx'"):
        vocabulary(worded_folder, vocab_languages=["xx"])


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows(tmp_path: Path) -> None:
    folder = save_trained(tmp_path / "m", vocab_size=1472)
    with pytest.raises(
        SourceError, match=r"the tokenizer of m has ids up to 1499, and the model 1472 rows; give it a row for each"
    ):
        vocabulary(folder).order()


def test_where_nothing_can_go_nothing_is_counted(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "count_language", lambda *_: pytest.fail("words were counted"))
    order = vocabulary(llama_folder, vocab_languages=["en"]).order()
    assert order.order.tolist() == [] and order.extra.tolist() == [0]
    assert order.num_tokens == 259 and order.rows(290) == (*range(259), *range(269, 300))


def test_the_costs_are_those_of_the_order(worded_folder: Path) -> None:
    found = vocabulary(worded_folder)
    costs = found.costs()
    assert costs.num_tokens == TOKENS and costs.extra.tolist() == found.order().extra.tolist()
    assert sum(costs.required.values()) == len(found.required.ids)
    assert all(costs.required.values())


def test_the_record_says_what_goes(worded_folder: Path, text_file: Path, tmp_path: Path) -> None:
    found = vocabulary(worded_folder, f"self,{text_file}", vocab_languages=["en"])
    record = recorded(found, 960, tmp_path / "t", sampled=["the class"], notes=["vocab.json is left out"])
    assert len(record.rows) == record.new_num_tokens == 960 and record.num_tokens == TOKENS
    assert record.texts == ("self", "words.txt") and record.fingerprints[0] is None
    assert record.languages == ("en",) and record.notes == ("vocab.json is left out",)
    assert sum(record.removed_scripts.values()) == TOKENS - 960 and record.removed_scripts["Latin"] > 100
    assert record.removed_languages["en"] > 10
    assert len(record.lost) == 40
    kept = {*record.rows}
    assert not any(token in kept for token in trained_tokenizer().convert_tokens_to_ids([record.lost[0]]) if token)
    assert [(each.text, each.bytes) for each in record.tokens_per_byte] == [
        ("self", 9),
        ("words.txt", text_file.stat().st_size),
    ]
    assert all(each.after >= each.before > 0 for each in record.tokens_per_byte)
    assert record.required["special and added tokens"] >= 1


def test_all_tokens_stay_where_rows_without_one_are_enough(worded_folder: Path, tmp_path: Path) -> None:
    record = recorded(vocabulary(worded_folder), 1504, tmp_path / "t")
    assert record.kept == "0-1499,1532-1535" and record.new_num_tokens == record.num_tokens == TOKENS < ROWS
    assert record.removed_scripts == record.removed_languages == {} and record.lost == ()


def test_a_text_of_another_script_is_warned_of(worded_folder: Path, tmp_path: Path) -> None:
    russian, mixed = tmp_path / "russian.txt", tmp_path / "mixed.txt"
    russian.write_text(RUSSIAN)
    mixed.write_text("Mostly in English, and a word in Russian: лиса. " * 20)
    found = vocabulary(worded_folder, f"self,{russian},{mixed}", vocab_languages=["en"])
    record = recorded(found, 960, tmp_path / "t")
    (line,) = found.warnings(record)
    each = next(each for each in record.tokens_per_byte if each.text == "russian.txt")
    assert line == (
        f"russian.txt is mostly Cyrillic, which en is not written in: it takes {each.after:.3f} tokens per byte after "
        f"{each.before:.3f}; name its language in vocab_languages"
    )
    assert vocabulary(worded_folder, str(russian)).warnings(record) == []  # no language is named


def test_reserved_tokens_can_go(worded_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(worded_folder, tmp_path / "m")
    contents = read_json(folder / "tokenizer.json")
    number = TOKENS
    for i in range(3):
        token = {**contents["added_tokens"][-1], "content": f"<unused{i}>", "id": number + i}
        contents["added_tokens"].append(token)
    edit_json(folder / "tokenizer.json", added_tokens=contents["added_tokens"])
    reserved = {number, number + 1, number + 2}
    assert reserved <= vocabulary(folder).required.ids
    found = vocabulary(folder, vocab_drop_reserved=True)
    assert not reserved & found.required.ids
    assert reserved <= {*found.order().order.tolist()}


def test_tokens_per_byte_are_counted_by_hand() -> None:
    whole = trained_tokenizer().backend_tokenizer
    found = measure_tokens("x", ["ä", "the"], whole, whole)
    assert (found.text, found.bytes) == ("x", 5)
    assert found.before == found.after == sum(len(whole.encode(text).ids) for text in ("ä", "the")) / 5


def test_the_end_token_always_stays(worded_folder: Path) -> None:
    found = vocabulary(worded_folder)
    assert trained_tokenizer().convert_tokens_to_ids(END) in found.required.ids
    assert TextSource("self").is_self and found.total == ROWS
