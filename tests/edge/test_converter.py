from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.edge import converter


def test_a_size_is_not_taken_for_a_published_models() -> None:
    for size in (32016, 49152):
        assert converter._Size(size, 50000) != size
        assert size != converter._Size(size, 50000)
    assert converter._Size(300, 400) == 300 == int(converter._Size(300, 400))
    assert converter._Size(300, 400) != 400
    assert {converter._Size(300, 400): 1} == {300: 1}
    assert list(range(converter._Size(3, 4))) == [0, 1, 2]


def test_what_holds_for_a_whole_vocabulary_holds_for_its_rest() -> None:
    assert converter._Size(32768, 49152) == 49152  # that text begins with no token
    assert converter._Size(30000, 32016) != 32016  # ids of single tokens


def test_the_converter_does_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    base = pytest.importorskip("conversion.base", reason="pip install 'optimum-ishrink[edge]'")
    gemma = pytest.importorskip("conversion.gemma")

    def begin(self: Any, folder: Path) -> None:
        self.dir_model, self.hparams = folder, {"vocab_size": 49152}

    original = gemma.GemmaModel.set_vocab
    monkeypatch.setattr(base.ModelBase, "__init__", begin)
    monkeypatch.setattr(base.TextModel, "get_vocab_base_pre", base.TextModel.get_vocab_base_pre)
    monkeypatch.setattr(gemma.GemmaModel, "set_vocab", original)
    monkeypatch.setattr(base.ModelBase, "no_mtp", False)
    converter.tell({"pre_tokenizer": None, "whole_rows": None})
    assert base.ModelBase.no_mtp
    model = object.__new__(base.ModelBase)
    base.ModelBase.__init__(model, Path("weights"))
    assert (model.dir_model, model.hparams["vocab_size"]) == (Path("weights"), 49152)
    assert gemma.GemmaModel.set_vocab is original
    converter.tell({"pre_tokenizer": "smollm", "whole_rows": 50000, "tokenizer_folder": "files"})
    base.ModelBase.__init__(model, Path("weights"))
    assert model.dir_model == Path("files")
    assert model.hparams["vocab_size"] != 49152
    assert gemma.GemmaModel.set_vocab is gemma.Gemma2Model.set_vocab
    assert base.TextModel.get_vocab_base_pre(None, None) == "smollm"
