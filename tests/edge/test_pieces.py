from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from optimum_ishrink.edge.pieces import MODEL_FILE, piece_scores, sentencepiece_model, write_piece_files
from optimum_ishrink.edge.probe_lines import PROBES
from optimum_ishrink.errors import SourceError
from tests.helpers.trimmed_gguf import byte_fallback

sentencepiece = pytest.importorskip("sentencepiece", reason="pip install 'optimum-ishrink[edge]'")
pytest.importorskip("google.protobuf")

TOKENIZER = byte_fallback(prefix=False)
CONTENTS = json.loads(TOKENIZER.backend_tokenizer.to_str())
PADDED = len(TOKENIZER) + 3


def _processor(data: bytes) -> Any:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(data)
    return processor


PROCESSOR = _processor(sentencepiece_model(CONTENTS, PADDED, Path("base")))


def test_scores_fall_with_the_first_merge_of_each_token() -> None:
    assert piece_scores([["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]) == {"ab": 0.0, "bc": -1.0, "abc": -2.0}
    assert piece_scores(["a b", "ab c"]) == {"ab": 0.0, "abc": -1.0}


@example("\n".join(PROBES))
@example("<table> the<table>of")
@given(st.text() | st.text("the of\nand_▁<>", max_size=40))
def test_any_text_is_split_alike(text: str) -> None:
    text = text.replace("\0", "")  # sentencepiece ends there
    for token in ("<unk>", "<s>", "</s>"):
        text = text.replace(token, "")
    expected = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert PROCESSOR.EncodeAsIds(text.replace(" ", "▁")) == expected


def test_rows_have_their_types() -> None:
    rows = range(PADDED)
    assert [row for row in rows if PROCESSOR.IsUnknown(row)] == [TOKENIZER.unk_token_id]
    assert [row for row in rows if PROCESSOR.IsControl(row)] == [TOKENIZER.bos_token_id, TOKENIZER.eos_token_id]
    assert sum(map(PROCESSOR.IsByte, rows)) == 256
    assert [row for row in rows if PROCESSOR.IsUnused(row)] == [*range(len(TOKENIZER), PADDED)]
    assert PROCESSOR.IdToPiece(PADDED - 1) == f"[PAD{PADDED - 1}]"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.pop("unk_token"), "has no unk_token, which llama.cpp needs"),
        (lambda model: model["vocab"].pop("<0x0A>"), "has byte_fallback but no token <0x0A>"),
    ],
)
def test_what_llama_cpp_could_not_read_is_refused(change: Any, words: str) -> None:
    contents = json.loads(json.dumps(CONTENTS))
    change(contents["model"])
    with pytest.raises(SourceError, match=words):
        sentencepiece_model(contents, PADDED, Path("base"))


def test_the_folder_says_which_tokens_are_added(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "files"
    TOKENIZER.save_pretrained(source)
    (source / "config.json").write_text("{}")
    (source / "added_tokens.json").write_text('{"<old>": 5}')
    (source / "model.safetensors").write_text("weights")
    folder.mkdir()
    write_piece_files(source, folder, PADDED, space_prefix=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    row = TOKENIZER.convert_tokens_to_ids("<table>")
    assert (config["added_tokens_decoder"][str(row)]["content"], config["add_prefix_space"]) == ("<table>", True)
    assert {path.name for path in folder.iterdir()} >= {"config.json", "tokenizer.json", MODEL_FILE}
    assert not {path.name for path in folder.iterdir()} & {"added_tokens.json", "model.safetensors"}
