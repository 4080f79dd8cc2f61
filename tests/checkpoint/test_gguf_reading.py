from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import SourceError
from tests.helpers.tiny import tiny_config, tiny_model, tiny_tokenizer


def test_an_invalid_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"not at all")
    with pytest.raises(SourceError, match="m.gguf is not a GGUF file; name one, or a checkpoint folder"):
        open_source(tmp_path, gguf_file="m.gguf")
    with pytest.raises(SourceError, match="holds no 'x.gguf'; GGUF files there: m.gguf"):
        open_source(tmp_path, gguf_file="x.gguf")


@pytest.mark.parametrize("named", [False, True])
def test_the_licence_is_read_from_a_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    if named:
        writer.add_license("other")
        writer.add_license_name("mine")
        writer.add_license_link("https://x.y")
        writer.add_languages(["en", "fr"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "README.md").write_text("---\nlicense: llama3.2\nlicense_name: card's\nlanguage: de\n---\n")
    asked = []

    def tokenizer(*_: object, **kwargs: object) -> object:
        asked.append(kwargs)
        return tiny_tokenizer()

    model = tiny_model(tiny_config("llama"))
    monkeypatch.setattr(
        "optimum_ishrink.checkpoint.gguf_reading.AutoModelForCausalLM.from_pretrained",
        lambda *_, **__: (model, {"missing_keys": set(), "unexpected_keys": set()}),
    )
    monkeypatch.setattr("optimum_ishrink.checkpoint.gguf_reading.AutoTokenizer.from_pretrained", tokenizer)
    source = open_source(tmp_path, gguf_file="m.gguf")
    assert source.gguf_file == "m.gguf"
    assert source.languages == (("en", "fr") if named else ("de",))
    assert asked == [{"gguf_file": "m.gguf", "trust_remote_code": False}]
    if named:
        assert source.license == "other"
        assert source.license_details == {"license_name": "mine", "license_link": "https://x.y"}
    else:
        assert (source.license, source.license_details) == ("llama3.2", {"license_name": "card's"})
