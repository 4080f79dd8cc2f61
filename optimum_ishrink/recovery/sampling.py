"""The teacher's own words as recovery text: sampled, filtered and kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..data import sample_windows
from ..head import CHUNK, Head
from ..progress import progress_bar
from .observe import observe
from .storage import load_tensors, save_tensors


@torch.no_grad()
def mean_surprise(model: Any, windows: torch.Tensor, *, batch_size: int = 4) -> torch.Tensor:
    """Return the mean negative log-likelihood of each window: the log of its perplexity.

    Args:
        model: The model.
        windows: Token ids, shape (windows, length).
        batch_size: Windows run at once.

    Returns:
        float64, shape (windows,).
    """
    head, found = Head(model), []
    rows = max(1, CHUNK // model.config.vocab_size)
    with progress_bar("perplexity of what was sampled", len(windows)) as advance:
        for start in range(0, len(windows), batch_size):
            ids = windows[start : start + batch_size].to(model.device)
            seen = observe(model, ids)
            states, following = seen.last[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
            losses = [
                torch.nn.functional.cross_entropy(
                    head(states[i : i + rows], seen.output_class).float(), following[i : i + rows], reduction="none"
                )
                for i in range(0, len(states), rows)
            ]
            found.append(torch.cat(losses).view(len(ids), -1).double().mean(1).cpu())
            advance(len(ids))
    return torch.cat(found)


def own_words(
    model: Any,
    tokenizer: Any,
    length: int,
    count: int,
    *,
    seed: int,
    temperature: float = 1.0,
    dropped: float = 0.1,
    cache: Path | None = None,
) -> torch.Tensor:
    """Return windows that a model sampled, without those that it finds least likely itself.

    At temperature 1 a small model now and then leaves the language for good; such a window teaches little. The share
    with the highest perplexity is dropped, and so many more are sampled.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        length: Tokens in a window.
        count: Windows wanted.
        seed: Seed of the sampling.
        temperature: What logits are divided by before a token is drawn.
        dropped: Share that is dropped, at least 0 and below 1.
        cache: Where they are kept; what is there already is read.

    Returns:
        Token ids, int64, shape (count, length).
    """
    if cache is not None and cache.is_file():
        return load_tensors(cache)["input_ids"].long()
    drawn = -(-count // (1 - dropped)) if dropped else count
    windows = sample_windows(model, tokenizer, length, int(drawn), seed=seed, temperature=temperature)
    if len(windows) > count:
        likely = mean_surprise(model, windows).argsort(stable=True)[:count]
        windows = windows[likely.sort().values]
    if cache is not None:
        save_tensors(cache, {"input_ids": windows.int()})
    return windows
