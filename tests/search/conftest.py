from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.search.template import Template
from tests.helpers.base_file import base_template
from tests.helpers.tokenizer_kinds import byte_level
from tests.helpers.trimmed_gguf import save_model


@pytest.fixture(scope="session")
def base_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A tiny llama model with a trained byte-level tokenizer."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>", model_max_length=512
    )
    folder = tmp_path_factory.mktemp("searched") / "tiny"
    return open_source(save_model(folder, tokenizer, num_hidden_layers=3))


@pytest.fixture(scope="session")
def base_file(base_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Template:
    """The model's file of 16 bits."""
    return base_template(base_source, tmp_path_factory.mktemp("file") / "base.gguf")


@pytest.fixture
def no_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp seems installed: what is tested fails before it is needed."""
    for name in ("check_runtime", "check_tools"):
        monkeypatch.setattr(f"optimum_ishrink.search.llama_cpp_runtime.{name}", lambda *_: None)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Text that is long enough to calibrate and to choose on."""
    path = tmp_path / "notes.txt"
    words = [
        "the",
        "a",
        "of",
        "to",
        "and",
        "in",
        "is",
        "it",
        "you",
        "that",
        "he",
        "was",
        "for",
        "on",
        "are",
        "with",
        "as",
        "his",
        "they",
        "at",
        "be",
        "this",
        "from",
        "have",
    ]
    lines = [" ".join(words[(i * j) % len(words)] for j in range(1, 40)) for i in range(1, 120)]
    path.write_text("\n\n".join(lines))
    return path
