"""Training text that the teacher samples itself: sampled, filtered and stored on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..core.durable import load_tensors, save_tensors
from ..text.sampling import sample_text


def self_text(
    load: Callable[[], Any],
    tokenizer: Any,
    length: int,
    count: int,
    *,
    seed: int,
    temperature: float = 1.0,
    dropped: float = 0.1,
    cache: Path | None = None,
) -> torch.Tensor:
    """Return windows that a model sampled, without those that it finds least likely.

    At temperature 1 a small model now and then drifts into nonsense; such a window teaches little. The share
    with the highest perplexity is dropped, and so many more are sampled.

    Args:
        load: Returns the model; called where the text is not stored yet.
        tokenizer: Its tokenizer.
        length: Tokens in a window.
        count: Windows wanted.
        seed: Seed of the sampling.
        temperature: What logits are divided by before a token is drawn.
        dropped: Share that is dropped, at least 0 and below 1.
        cache: File that stores them; when it exists it is read.

    Returns:
        Token ids, int64, shape (count, length).
    """
    if cache is not None and cache.is_file():
        return load_tensors(cache)["input_ids"].long()
    drawn = -(-count // (1 - dropped)) if dropped else count
    found = sample_text(load(), tokenizer, length, int(drawn), seed=seed, temperature=temperature)
    windows = found.input_ids
    if len(windows) > count:
        windows = windows[found.mean_nll.argsort(stable=True)[:count].sort().values]
    if cache is not None:
        save_tensors(cache, {"input_ids": windows.int()})
    return windows
