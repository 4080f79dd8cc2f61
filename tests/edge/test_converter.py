from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.edge import converter


def test_a_size_is_not_taken_for_a_published_models() -> None:
    for size in (32016, 49152):
        assert converter._Size(size) != size
        assert size != converter._Size(size)
    assert converter._Size(300) == 300 == int(converter._Size(300))
    assert {converter._Size(300): 1} == {300: 1}
    assert list(range(converter._Size(3))) == [0, 1, 2]


def test_the_converter_does_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    base = pytest.importorskip("conversion.base", reason="pip install 'optimum-ishrink[edge]'")
    gemma = pytest.importorskip("conversion.gemma")

    def begin(self: Any, folder: Path) -> None:
        self.dir_model, self.hparams = folder, {"vocab_size": 49152}

    original = gemma.GemmaModel.set_vocab
    monkeypatch.setattr(base.ModelBase, "__init__", begin)
    monkeypatch.setattr(base.TextModel, "get_vocab_base_pre", base.TextModel.get_vocab_base_pre)
    monkeypatch.setattr(gemma.GemmaModel, "set_vocab", original)
    converter.tell({"pre_tokenizer": None, "trimmed": False})
    model = object.__new__(base.ModelBase)
    base.ModelBase.__init__(model, Path("weights"))
    assert (model.dir_model, model.hparams["vocab_size"]) == (Path("weights"), 49152)
    assert gemma.GemmaModel.set_vocab is original
    converter.tell({"pre_tokenizer": "smollm", "trimmed": True, "tokenizer_folder": "files"})
    base.ModelBase.__init__(model, Path("weights"))
    assert model.dir_model == Path("files")
    assert model.hparams["vocab_size"] != 49152
    assert gemma.GemmaModel.set_vocab is gemma.Gemma2Model.set_vocab
    assert base.TextModel.get_vocab_base_pre(None, None) == "smollm"
