"""A page as `make app` builds it, without its contents, and tiny GGUF files for sites."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

PAGE_FILES = {
    "index.html": b"<!doctype html><title>page</title>",
    "measure.html": b"<!doctype html><title>measure</title>",
    "main.js": b"export {};",
    "engine/engine.wasm": bytes(range(256)) * 16,
    "manifest.webmanifest": b"{}",
}


def build_page(folder: Path, **facts: Any) -> Path:
    """Write what stands for the built page."""
    files = []
    for name, data in PAGE_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        files.append({"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    (folder / "licences.txt").write_text("MIT")
    (folder / "page.json").write_text(json.dumps({"version": "0.1.0", "files": files, **facts}))
    return folder


def install_page(monkeypatch: pytest.MonkeyPatch, folder: Path, **facts: Any) -> Path:
    """Let sites be written from such a page."""
    monkeypatch.setattr("optimum_ishrink.app.built_page.PAGE", build_page(folder, **facts))
    return folder


def write_tiny(path: Path, architecture: str = "llama", *, seed: int = 0, **values: Any) -> Path:
    """Write a tiny GGUF file; `values` replace or remove (None) values of its header, by name with `__` for dots."""
    header: dict[str, Any] = {
        "general.name": path.stem,
        "general.file_type": 7,
        f"{architecture}.block_count": 2,
        f"{architecture}.context_length": 512,
        f"{architecture}.embedding_length": 32,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.head_count_kv": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"t{number}" for number in range(16)],
        "tokenizer.chat_template": "{{ messages }}",
        **{name.replace("__", "."): value for name, value in values.items()},
    }
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in header.items():
        if key == "general.alignment":
            writer.add_custom_alignment(value)  # places the tensors, too
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    draw = np.random.default_rng(seed)
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight"):
        data = draw.standard_normal((16, 32)).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
