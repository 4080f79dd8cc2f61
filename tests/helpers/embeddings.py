"""Tiny models with a part of their vocabulary, and heads that are nearly their embeddings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from optimum_ishrink.architectures.description import HEADS
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.report.tied_head import HeadRecord
from optimum_ishrink.surgery.embeddings import write_embeddings
from optimum_ishrink.vocabulary.renumber import renumber_ids
from tests.helpers.tiny import edit_json, save_tiny, tiny_tokenizer

ROWS = (0, 1, 2, *range(5, 40), 63, *range(100, 180, 3), 255, 256, 257, 258, 299)
"""Rows of a tiny model that stay: runs, gaps, single ones, and the last, which has no token."""


def write_rows(folder: Path, target: Path, rows: Sequence[int] | None, head: HeadRecord | None = None) -> Path:
    """Write a checkpoint with some rows of its vocabulary or with its head tied, and return its folder."""
    source = open_source(folder)
    target.mkdir()
    edited: dict[str, Any] = dict(source.raw_config)
    if rows is not None:
        edited = {**renumber_ids(edited, rows)[0], "vocab_size": len(rows)}
    if head is not None:
        edited["tie_word_embeddings"] = True
    (target / "config.json").write_text(json.dumps(edited))
    write_embeddings(source.tensors, source.binding, target, rows, head)
    tiny_tokenizer().save_pretrained(target)  # another one, so that what looks for one finds it
    return target


def save_with_head(folder: Path, config: Any, *, error: float = 0.0, swap: bool = False, seed: int = 0) -> Path:
    """Save a tiny untied model whose head is its embedding, and return the folder.

    Args:
        folder: Where to.
        config: Its config.
        error: Coarseness of one of the two: the step of its rounding over its standard deviation.
        swap: Round the embedding instead of the head.
        seed: Seed of the weights.
    """
    config.tie_word_embeddings = False
    save_tiny(folder, config, seed=seed)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    name = next(
        each
        for each, tensor in tensors.items()
        if each not in HEADS and (tensor.ndim, len(tensor)) == (2, config.vocab_size)
    )
    head = next(each for each in HEADS if each in tensors)
    tensors[head] = tensors[name].clone()
    if error:
        rounded = name if swap else head
        step = error * tensors[rounded].std()
        tensors[rounded] = (tensors[rounded] / step).round() * step
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def copy_with(folder: Path, target: Path, **more: torch.Tensor) -> Path:
    """Copy a checkpoint with more tensors in it, and return the new folder."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    save_file({**tensors, **more}, target / "model.safetensors", {"format": "pt"})
    return target
