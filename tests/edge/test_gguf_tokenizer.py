from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.architectures.description import ROWS
from optimum_ishrink.checkpoint.loading import load_tokenizer
from optimum_ishrink.core.json_files import read_json, write_json
from optimum_ishrink.edge import gguf_tokenizer
from optimum_ishrink.edge.gguf_tokenizer import GgufTokenizer, find_gguf_tokenizer
from optimum_ishrink.edge.pre_tokenizers import known_pre_tokenizers
from optimum_ishrink.errors import RequestError, SourceError
from optimum_ishrink.report.files import PLAN_FILE
from optimum_ishrink.report.run import read_plan
from tests.helpers.trimmed_gguf import byte_fallback, byte_level, save_model, trim

DIGITS = {
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
    "ignore_merges": False,
}
ODD = {**DIGITS, "normalizer": {"type": "NFKC"}}


def _folder(place: Path, section: Any, recorded: str | None) -> Path:
    base = save_model(place / "base", byte_level(section), num_hidden_layers=1)
    return trim(base, place / "trimmed", llama_cpp_pre=recorded)


@pytest.fixture(scope="module")
def known_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("known"), DIGITS, None)


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("odd"), ODD, None)


def _record(folder: Path, name: str | None, target: Path) -> Path:
    """The same folder, whose plan has another name."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    plan = read_json(folder / PLAN_FILE)
    plan["vocabulary"]["llama_cpp_pre"] = name
    write_json(target / PLAN_FILE, plan)
    return target


def test_a_known_section_has_the_recorded_name_among_its_names(known_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(known_folder)
    for recorded, name in ((None, "smollm"), ("starcoder", "starcoder"), ("qwen2", "smollm")):
        folder = _record(known_folder, recorded, tmp_path / str(recorded))
        found = find_gguf_tokenizer(folder, tokenizer)
        assert (found.pre_tokenizer, found.is_own, found.pieces) == (name, True, False)
        assert found.whole_rows == read_plan(known_folder).shape[ROWS]
    assert find_gguf_tokenizer(known_folder, tokenizer, "gpt-2").pre_tokenizer == "gpt-2"


def test_an_unknown_section_has_the_recorded_name(odd_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(odd_folder)
    folder = _record(odd_folder, "deepseek-llm", tmp_path / "recorded")
    assert find_gguf_tokenizer(folder, tokenizer).pre_tokenizer == "deepseek-llm"
    with pytest.raises(
        SourceError, match=r"nothing says what llama.cpp calls the pre-tokenizer of trimmed.*--pre-tok"
    ):
        find_gguf_tokenizer(odd_folder, tokenizer)


def test_the_converter_is_left_alone_with_what_it_knows(known_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_tokenizer, "converter_name", lambda tokenizer: "smollm")
    found = find_gguf_tokenizer(known_folder, load_tokenizer(known_folder))
    assert (found.pre_tokenizer, found.whole_rows is None, found.is_own) == (None, False, True)
    base = known_folder.parent / "base"
    found = find_gguf_tokenizer(base, load_tokenizer(base))
    assert (found.pre_tokenizer, found.whole_rows, found.is_own) == (None, None, False)
    assert find_gguf_tokenizer(base, load_tokenizer(base), "gpt-2").is_own


def test_names_are_checked(known_folder: Path, edge_folder: Path) -> None:
    message = "unknown pre-tokenizer 'smolm' (did you mean 'smollm'?); use a name of llama.cpp's converter"
    with pytest.raises(RequestError, match=re.escape(message)):
        find_gguf_tokenizer(known_folder, load_tokenizer(known_folder), "smolm")
    with pytest.raises(RequestError, match="for a byte-level vocabulary, and this model's is none; leave it out"):
        find_gguf_tokenizer(edge_folder, load_tokenizer(edge_folder), "smollm")


def test_pieces_are_made_where_there_is_no_sentencepiece_model(tmp_path: Path) -> None:
    for prefix in (True, False):
        folder = tmp_path / str(prefix)
        tokenizer = byte_fallback(prefix=prefix)
        tokenizer.save_pretrained(folder)
        found = find_gguf_tokenizer(folder, tokenizer)
        assert found == GgufTokenizer(pieces=True, space_prefix=prefix)
        assert found.is_own and not found.may_differ(" a")
        (folder / "tokenizer.model").write_text("")
        assert not find_gguf_tokenizer(folder, tokenizer).is_own


def test_lines_may_differ_where_published_models_do(tmp_path: Path) -> None:
    contents = json.loads(byte_fallback(prefix=False).backend_tokenizer.to_str())
    contents["normalizer"] = None
    contents["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    tokenizer = byte_fallback(prefix=False)
    tokenizer._tokenizer = tokenizer.backend_tokenizer.from_str(json.dumps(contents))
    found = find_gguf_tokenizer(tmp_path, tokenizer)
    assert (found.space_prefix, found.strips_prefix) == (True, True)
    assert found.may_differ("  a") and not found.may_differ("a")
    (known,) = (entry for entry in known_pre_tokenizers() if entry.names[0] == "tekken")
    for line, expected in (("ÉCOLE", True), ("हिन्दी", True), ("ABC été", False), ("é", False)):
        assert GgufTokenizer(known=known).may_differ(line) is expected
        assert not GgufTokenizer(known=known_pre_tokenizers()[0]).may_differ(line)
