"""A program that stands for `llama-quantize`: q4_k and q6_k of plain rounding, in the layout that gguf reads."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

Array = np.ndarray[Any, Any]


def q6_k(rows: Array) -> Array:
    """Scales of 16 weights each, 8 bits, and weights of 6 bits."""
    blocks = rows.reshape(-1, 16, 16)
    scales = np.abs(blocks).max(axis=2) / 31
    whole = np.maximum(scales.max(axis=1, keepdims=True) / 127, 1e-7).astype(np.float16)
    stored = np.round(scales / whole.astype(np.float32)).astype(np.int8)
    each = np.maximum(whole.astype(np.float32) * stored, 1e-12)
    values = np.clip(np.round(blocks / each[..., None]), -32, 31).astype(np.int8) + 32
    values = values.astype(np.uint8).reshape(len(blocks), 256)
    low = (values & 15).reshape(-1, 2, 2, 64)
    high = (values >> 4).reshape(-1, 2, 4, 32)
    lows = low[:, :, 0] | low[:, :, 1] << 4
    highs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = (lows.reshape(-1, 128), highs.reshape(-1, 64), stored.view(np.uint8), whole.view(np.uint8))
    return np.hstack(parts).reshape(len(rows), -1)


def q4_k(rows: Array) -> Array:
    """Scales and least values of 32 weights each, 6 bits, and weights of 4 bits."""
    blocks = rows.reshape(-1, 8, 32)
    least = np.maximum(-blocks.min(axis=2), 0)
    scales = (np.maximum(blocks.max(axis=2), 0) + least) / 15
    most = [each.max(axis=1, keepdims=True) / 63 for each in (scales, least)]
    whole, lowest = (np.maximum(each, 1e-7).astype(np.float16) for each in most)
    scale = np.round(scales / whole.astype(np.float32)).clip(0, 63).astype(np.uint8)
    lows = np.round(least / lowest.astype(np.float32)).clip(0, 63).astype(np.uint8)
    each = np.maximum(whole.astype(np.float32) * scale, 1e-12)[..., None]
    values = np.round((blocks + (lowest.astype(np.float32) * lows)[..., None]) / each).clip(0, 15).astype(np.uint8)
    packed = values.reshape(-1, 4, 2, 32)
    first = scale[:, :4] | (scale[:, 4:] >> 4) << 6
    second = lows[:, :4] | (lows[:, 4:] >> 4) << 6
    third = (scale[:, 4:] & 15) | (lows[:, 4:] & 15) << 4
    quants = (packed[:, :, 0] | packed[:, :, 1] << 4).reshape(-1, 128)
    parts = (whole.view(np.uint8), lowest.view(np.uint8), first, second, third, quants)
    return np.hstack(parts).reshape(len(rows), -1)


KINDS = {"Q6_K": q6_k, "Q4_K_S": q4_k}


def main(pure: str, source: str, target: str, name: str, threads: str) -> None:
    """Quantise as `llama-quantize --pure SOURCE TARGET NAME THREADS` does."""
    assert pure == "--pure" and int(threads) > 0
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    kind = gguf.GGMLQuantizationType[name.removesuffix("_S")]
    for tensor in reader.tensors:
        rows = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if len(rows) == 1:  # it is no matrix
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            writer.add_tensor(tensor.name, KINDS[name](rows), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str | None = None) -> None:
    """Put the program on the PATH.

    Args:
        folder: Where it lies.
        monkeypatch: Takes it off the PATH afterwards.
        text: Another program, as a shell script.
    """
    folder.mkdir(exist_ok=True)
    path = folder / "llama-quantize"
    here = Path(__file__)
    command = f'exec "{sys.executable}" "{here}" "$@"' if text is None else text
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def install_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program run in this process: a new one takes seconds for its imports."""
    monkeypatch.setattr("optimum_ishrink.edge.program_types.run_program", lambda command, failure: main(*command[1:]))
    monkeypatch.setattr("optimum_ishrink.search.requirements.check_program", lambda names: None)


if __name__ == "__main__":
    main(*sys.argv[1:])
