"""A device whose times and memory follow from a file's tensors: a search without llama.cpp, or processes of torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import gguf
import pytest

from optimum_ishrink.checkpoint.source import Source
from optimum_ishrink.checkpoint.tensors import read_index
from optimum_ishrink.checkpoint.writing import verify_checkpoint
from tests.helpers.base_file import write_base_file

VERIFIED: list[str] = []
"""Names of the files that would be compared in llama.cpp."""

TIMED: list[list[str]] = []
"""Names of the files of each call."""


def time_files(files: Mapping[str, Path], workload: Any, **_: Any) -> tuple[dict[str, dict[str, float]], str]:
    """Time GGUF files."""
    TIMED.append(list(files))
    found = {}
    for name, path in files.items():
        tensors = gguf.GGUFReader(path).tensors
        sizes = {tensor.name: int(tensor.n_bytes) for tensor in tensors}
        unread = sizes["token_embd.weight"] if "output.weight" in sizes else 0
        weights = sum(prod(map(int, tensor.shape)) for tensor in tensors)
        found[name] = _figures(sum(sizes.values()), unread, weights, workload)
    return found, "made-up device"


def time_checkpoints(folders: Mapping[str, Path], workload: Any, **_: Any) -> tuple[dict[str, dict[str, float]], str]:
    """Time safetensors checkpoints, which have to be ones that a class accepts."""
    TIMED.append(list(folders))
    found = {}
    for name, folder in folders.items():
        verify_checkpoint(folder)
        tensors = read_index(folder)
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        unread = tensors["model.embed_tokens.weight"].nbytes if "lm_head.weight" in tensors else 0
        found[name] = _figures(nbytes, unread, sum(prod(tensor.shape) for tensor in tensors.values()), workload)
    return found, "made-up device"


def _figures(nbytes: int, unread: int, weights: int, workload: Any) -> dict[str, float]:
    """A token costs 1 ms and 10 ns for a byte that it reads, a prompt 2 ms and 1 ns for each weight and token."""
    return {
        "decode": 1 / (1e-3 + 1e-8 * (nbytes - unread)),
        "ttft": 2e-3 + 1e-9 * weights * workload.prompt,
        "memory": 1e6 + 1.1 * nbytes,
    }


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let searches use the device, and files that are written without llama.cpp's converter."""

    def write(source: Source, path: Path, pre_tokenizer: str | None = None) -> None:
        path.unlink(missing_ok=True)
        write_base_file(source, path)

    TIMED.clear()
    for module in ("llama_cpp_runtime", "chosen_export"):
        monkeypatch.setattr(f"optimum_ishrink.search.{module}.write_base_file", write)
    monkeypatch.setattr("optimum_ishrink.search.llama_cpp_runtime.time_files", time_files)
    monkeypatch.setattr("optimum_ishrink.search.torch_runtime.time_checkpoints", time_checkpoints)
    for name in ("check_runtime", "check_tools"):
        for module in ("search.llama_cpp_runtime", "edge.gguf_export"):
            monkeypatch.setattr(f"optimum_ishrink.{module}.{name}", lambda *_: None)
    VERIFIED.clear()
    monkeypatch.setattr(
        "optimum_ishrink.search.llama_cpp_runtime.verify_file",
        lambda source, opened, path, *_: VERIFIED.append(path.name),
    )
