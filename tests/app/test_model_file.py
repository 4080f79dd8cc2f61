from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from optimum_ishrink.app import model_file
from optimum_ishrink.app.model_file import read_model_file
from optimum_ishrink.errors import SourceError
from tests.helpers.app_site import write_tiny


def test_what_a_site_says_of_a_model(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "small.gguf", general__name="Small")
    found = read_model_file(path)
    assert found.name == "Small"
    assert found.nbytes == path.stat().st_size
    assert found.to_json() == {
        "architecture": "llama",
        "quantization": "q8_0",
        "tensor_types": ["f32", "q8_0"],
        "parameters": 3 * 16 * 32 + 32,
        "context": 512,
        "vocabulary": 16,
        "kv_cache_bytes_per_token": 2 * 2 * (8 + 8) * 2,
        "chat_template": True,
        "template_sha256": hashlib.sha256(b"{{ messages }}").hexdigest(),
        "generation": {},
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"llama__attention__head_count_kv": [1, 3]}, 4 * 16 * 2),
        ({"llama__attention__key_length": 10, "llama__attention__value_length": 6}, 2 * 2 * 16 * 2),
        ({"llama__attention__key_length": 10}, 2 * 2 * 18 * 2),
        ({"llama__attention__head_count_kv": None}, 2 * 4 * 16 * 2),
        ({"llama__block_count": None}, None),
        ({"llama__embedding_length": None}, None),
        ({"llama__attention__head_count": [4, 4]}, None),
    ],
)
def test_the_cache(values: dict[str, Any], expected: int | None, tmp_path: Path) -> None:
    assert read_model_file(write_tiny(tmp_path / "a.gguf", **values)).cache_bytes == expected


@pytest.mark.parametrize(
    ("file_type", "expected"), [(7, "q8_0"), (15, "q4_k_m"), (1, "q8_0"), (32, "q8_0"), (999, "q8_0"), (None, "q8_0")]
)
def test_the_quantisation(file_type: int | None, expected: str, tmp_path: Path) -> None:
    """A search leaves the number of the 16 bits that its file was made from."""
    assert read_model_file(write_tiny(tmp_path / "a.gguf", general__file_type=file_type)).quantization == expected


def test_mixed_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = gguf.quants.quantize
    kinds = iter([gguf.GGMLQuantizationType.Q8_0] * 2 + [gguf.GGMLQuantizationType.Q4_0])
    used = []

    def quantize(data: Any, _: Any) -> Any:
        used.append(next(kinds))
        return draw(data, used[-1])

    monkeypatch.setattr(gguf.quants, "quantize", quantize)
    add = gguf.GGUFWriter.add_tensor

    def add_tensor(self: Any, name: str, data: Any, raw_dtype: Any = None) -> None:
        add(self, name, data, raw_dtype=raw_dtype and used[-1])

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", add_tensor)
    assert read_model_file(write_tiny(tmp_path / "a.gguf", general__file_type=1)).quantization == "mixed"


def test_generation_configs(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.gguf", general__sampling__temp=0.2, general__sampling__top_k=50)
    config = {"temperature": 0.7, "do_sample": True, "max_new_tokens": 9, "top_p": None, "repetition_penalty": 1.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert read_model_file(path).generation == {"temperature": 0.2, "top_k": 50}
    used = {"temperature": 0.7, "do_sample": True, "repetition_penalty": 1.0}
    assert read_model_file(path, tmp_path).generation == used
    assert read_model_file(write_tiny(tmp_path / "b.gguf")).generation == used
    assert read_model_file(path, tmp_path / "none").generation == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "generation_config.json is not a JSON object; mend it, or remove it"),
        ('{"temperature": "hot"}', "has temperature 'hot'; mend it, or remove it"),
        ('{"temperature": true}', "has temperature True"),
        ('{"top_p": -1}', "has top_p -1"),
        ('{"top_p": NaN}', "has top_p nan"),
        ('{"do_sample": 1}', "has do_sample 1"),
    ],
)
def test_generation_configs_that_are_none(config: str, message: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    (tmp_path / "generation_config.json").write_text(config)
    with pytest.raises(SourceError, match=message):
        read_model_file(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split__count": 3}, "is one of 3 parts of a model; merge them with llama.cpp's `llama-gguf-split --merge`"),
        ({"tokenizer__ggml__tokens": None}, "holds no tokenizer, so that nothing can be typed"),
        ({"architecture": "nonesuch"}, "has the architecture 'nonesuch', which the llama.cpp of this version"),
    ],
)
def test_files_that_a_browser_cannot_run(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        read_model_file(write_tiny(tmp_path / "a.gguf", **values))


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "MOST_BYTES", 1000)
    with pytest.raises(SourceError, match="a browser holds files of up to 2 GB; name one of a smaller quantization"):
        read_model_file(write_tiny(tmp_path / "a.gguf"))


def test_a_file_that_the_reader_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise ValueError("no\nsuch thing")

    monkeypatch.setattr(gguf, "GGUFReader", refuse)
    with pytest.raises(SourceError, match=r"cannot read .* as GGUF \(no such thing\)"):
        read_model_file(write_tiny(tmp_path / "a.gguf"))
