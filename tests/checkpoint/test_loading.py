from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimum_ishrink.checkpoint.loading import load_model, load_tokenizer
from optimum_ishrink.errors import SourceError
from tests.helpers.tiny import tiny_config, tiny_model


def test_loading_says_what_does_not_fit(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="missing_keys model.norm.weight"):
        load_model(folder, torch.float32, torch.device("cpu"))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    tiny_model(tiny_config("llama")).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="holds no usable tokenizer"):
        load_tokenizer(tmp_path)


def test_the_code_of_a_tokenizer_is_never_run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked = []
    monkeypatch.setattr(
        "optimum_ishrink.checkpoint.loading.AutoTokenizer.from_pretrained", lambda *_, **kwargs: asked.append(kwargs)
    )
    load_tokenizer(folder)
    assert asked == [{"trust_remote_code": False}]
