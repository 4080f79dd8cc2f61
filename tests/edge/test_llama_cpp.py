from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.edge import llama_cpp, llama_server
from optimum_ishrink.edge.gguf_file import GgufFile, read_gguf
from optimum_ishrink.edge.llama_cpp import benchmark_llama_cpp, open_for_llama_cpp
from optimum_ishrink.edge.options import RuntimeOptions
from optimum_ishrink.errors import RequestError, SourceError
from tests.helpers.tiny import save_tiny, tiny_config

RUNTIME = RuntimeOptions(runtime="llama.cpp", threads=1)


def test_a_model_against_itself(gguf_path: Path) -> None:
    found = benchmark_llama_cpp(
        gguf_path, str(gguf_path), runtime=RUNTIME, prompt_lengths=(16, 8), new_tokens=4, rounds=2
    )
    report = found.report
    metrics = {entry.metric for entry in report.shrunk.speed}
    assert {"model_load_seconds", "time_to_first_token_seconds", "decode_tokens_per_second", "file_bytes"} <= metrics
    assert report.base is not None and report.base.params == report.shrunk.params
    assert (found.threads, found.model, found.base) == (1, None, None)
    assert found.build.startswith("xllamacpp ")
    settings = report.shrunk.speed[0].settings
    assert (settings["lengths"], settings["new_tokens"], settings["rounds"]) == ((8, 16), 4, 2)


def test_a_folder_is_exported_first(edge_folder: Path, gguf_path: Path) -> None:
    base = read_gguf(gguf_path)
    source = open_source(edge_folder)
    found = benchmark_llama_cpp(source, base, runtime=RUNTIME, prompt_lengths=(8,), new_tokens=4, rounds=1)
    assert (found.model, found.base) == (source, None)
    assert found.report.shrunk.name == "tiny"
    assert found.report.shrunk.speed[0].dataset == "llama.cpp f16"  # that of the file


def test_open_for_llama_cpp(edge_folder: Path, gguf_path: Path, tmp_path: Path) -> None:
    assert isinstance(open_for_llama_cpp(gguf_path), GgufFile)
    source = open_for_llama_cpp(str(edge_folder))
    assert isinstance(source, Source)
    assert open_for_llama_cpp(source) is source
    with pytest.raises(SourceError, match="is not a GGUF file; name one, or a checkpoint folder"):
        open_for_llama_cpp(edge_folder / "model.safetensors")
    shutil.copy(gguf_path, tmp_path / "only.gguf")
    with pytest.raises(SourceError, match="name the GGUF file itself, such as .*only.gguf"):
        open_for_llama_cpp(tmp_path)
    with pytest.raises(SourceError, match="missing.gguf does not exist"):
        open_for_llama_cpp(tmp_path / "missing.gguf")


def test_models_that_cannot_be_compared(gguf_path: Path) -> None:
    message = (
        "a prompt of 500 tokens with 32 new ones does not fit the model's 512; the longest prompt that fits has 472"
    )
    with pytest.raises(RequestError, match=re.escape(message)):
        benchmark_llama_cpp(gguf_path, runtime=RUNTIME, prompt_lengths=(8, 500))
    with pytest.raises(RequestError, match="is f16, not q8_0; leave out --quantization"):
        benchmark_llama_cpp(gguf_path, runtime=RUNTIME.replace(quantization="q8_0"))
    file = read_gguf(gguf_path)
    with pytest.raises(RequestError, match="compare models of the same quantisation"):
        benchmark_llama_cpp(file, replace(file, quantization="q8_0"), runtime=RUNTIME)


def test_a_model_that_llama_cpp_would_run_otherwise_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "check_runtime", lambda: None)
    types = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    source = open_source(save_tiny(tmp_path / "tiny", tiny_config("gemma2", layer_types=types)))
    with pytest.raises(RequestError, match="layer_types: .* layer 1 of this model is"):
        benchmark_llama_cpp(source, runtime=RUNTIME.replace(quantization="f16"))


def test_settings_are_checked_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "check_runtime", lambda: None)
    opened: list[Any] = []
    monkeypatch.setattr(llama_cpp, "open_for_llama_cpp", opened.append)
    with pytest.raises(RequestError, match="must be whole numbers of at least 1"):
        benchmark_llama_cpp("x.gguf", runtime=RUNTIME, rounds=0)
    assert opened == []


def test_a_missing_runtime_has_a_command_that_installs_it(edge_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_server.importlib.util, "find_spec", lambda name: None)
    for run in (lambda: open_for_llama_cpp(edge_folder), lambda: benchmark_llama_cpp(edge_folder, runtime=RUNTIME)):
        with pytest.raises(RequestError, match=re.escape("not installed: pip install 'optimum-ishrink[edge]'")):
            run()
