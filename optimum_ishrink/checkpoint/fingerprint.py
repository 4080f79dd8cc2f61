"""Fingerprints of checkpoints: hashes of their contents, independent of names and folders."""

from __future__ import annotations

import json
from pathlib import Path

from ..core.digest import file_digest
from .generation import GENERATION_CONFIG
from .source import Source
from .tokenizer_files import TOKENIZER_PATTERNS

_OTHER = (*TOKENIZER_PATTERNS, "special_tokens*", "added_tokens*", GENERATION_CONFIG)
"""Files beside config and weights that change what a model reads or writes."""


def checkpoint_digest(folder: Path) -> str:
    """Return a short hash of a checkpoint's config and weight files."""
    weights = [path for path in folder.glob("*.safetensors") if not path.name.startswith("ishrink_")]
    return file_digest(sorted([folder / "config.json", *weights]))


def model_fingerprint(source: Source) -> str:
    """Return a hash of a source's contents: configs, tokenizer files and every byte of the weights.

    Args:
        source: The model.
    """
    names = {path for pattern in _OTHER for path in source.folder.glob(pattern) if path.is_file()}
    weights = {info.file for info in source.tensors.values()}
    return file_digest([*sorted(names), *sorted(weights)], json.dumps(source.raw_config, sort_keys=True).encode())
