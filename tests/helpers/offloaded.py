"""Tiny models whose layers come from disk, and texts for them."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink.architectures.model_class import parse_config
from optimum_ishrink.checkpoint import offloaded
from optimum_ishrink.checkpoint.offloaded import offloaded_model
from optimum_ishrink.checkpoint.source import Source
from optimum_ishrink.core.spool import Spool

TEXT = {"calibration_samples": 8, "calibration_length": 24}
"""Windows that a tiny model is calibrated on."""

SHRINK: dict[str, Any] = {
    **TEXT,
    "num_hidden_layers": 3,
    "intermediate_size": 16,
    "score_cache": False,
    "result_cache": False,
    "evaluate": False,
    "benchmark": False,
    "sample_new_tokens": 0,
    "seed": 1,
}
"""A shrink of a tiny model, by the default criteria and with compensation."""


def page_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let embedding and head come from disk, too, however small they are."""
    monkeypatch.setattr(offloaded, "SMALL", 64)


def from_disk(source: Source, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a source, its layers read from disk one by one."""
    return offloaded_model(parse_config(source.raw_config), source.binding, source.tensors, dtype, Spool())


def text_file(path: Path, seed: int = 0) -> Path:
    """A text of made-up words."""
    draw = random.Random(seed)
    words = ("".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(1500))
    path.write_text(" ".join(words))
    return path


def weight_hashes(folder: Path) -> dict[str, str]:
    """A hash of everything in an output folder that does not say how the run was made."""
    left_out = ("ishrink_report.json", "ishrink_config.json", "README.md")
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".safetensors", ".json")]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in left_out
    }
