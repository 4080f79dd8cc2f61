"""A device whose times and memory follow from a file's tensors: a search without llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import gguf
import pytest

from optimum_ishrink.checkpoint.source import Source
from tests.helpers.base_file import write_base_file

VERIFIED: list[str] = []
"""Names of the files that would be compared in llama.cpp."""

TIMED: list[list[str]] = []
"""Names of the files of each call."""


def time_files(files: Mapping[str, Path], workload: Any, **_: Any) -> tuple[dict[str, dict[str, float]], str]:
    """A token costs 1 ms and 10 ns a byte, a prompt 2 ms and 1 ns for each weight and token."""
    TIMED.append(list(files))
    found = {}
    for name, path in files.items():
        tensors = gguf.GGUFReader(path).tensors
        nbytes = sum(int(tensor.n_bytes) for tensor in tensors)
        weights = sum(prod(int(size) for size in tensor.shape) for tensor in tensors)
        found[name] = {
            "decode": 1 / (1e-3 + 1e-8 * nbytes),
            "ttft": 2e-3 + 1e-9 * weights * workload.prompt,
            "memory": 1e6 + 1.1 * nbytes,
        }
    return found, "made-up device"


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let searches use the device, and files that are written without llama.cpp's converter."""

    def write(source: Source, path: Path, pre_tokenizer: str | None = None) -> None:
        path.unlink(missing_ok=True)
        write_base_file(source, path)

    TIMED.clear()
    for module in ("search", "profiling", "measured_damage", "chosen_export"):
        monkeypatch.setattr(f"optimum_ishrink.search.{module}.write_base_file", write)
    for module in ("profile", "candidates"):
        monkeypatch.setattr(f"optimum_ishrink.search.{module}.time_files", time_files)
    for name in ("check_runtime", "check_tools"):
        for module in ("search.search", "search.profiling", "edge.gguf_export"):
            monkeypatch.setattr(f"optimum_ishrink.{module}.{name}", lambda *_: None)
    VERIFIED.clear()
    monkeypatch.setattr(
        "optimum_ishrink.search.candidates.verify_file", lambda source, opened, path, *_: VERIFIED.append(path.name)
    )
