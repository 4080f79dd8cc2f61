"""What tells one checkpoint from another: its contents, not its name or its place."""

from __future__ import annotations

import hashlib
import json

from .source import Source

_TOKENIZER = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "chat_template*", "*.model")
_CHUNK = 2**24


def model_fingerprint(source: Source) -> str:
    """Return a hash of a checkpoint's contents: config, tokenizer files and every byte of the weights.

    Args:
        source: The model.
    """
    digest = hashlib.sha256(json.dumps(source.raw_config, sort_keys=True).encode())
    names = {path for pattern in _TOKENIZER for path in source.folder.glob(pattern) if path.is_file()}
    weights = {info.file for info in source.tensors.values()}
    for path in (*sorted(names), *sorted(weights)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]
