"""Text for calibration and evaluation: local files, Hub data sets, or the model's own words.

A text source is `self`, `FILE.txt`, `FILE.jsonl` or a Hub data set id with optional `:config`, `:split` and `:column`.
Text is tokenised, joined with the end-of-text token and cut into windows of equal length, so that no token is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import DataError
from .sampling import sample_text
from .sources import TextSource, equal_shares, identity, portions
from .windows import token_windows


def calibration_windows(
    sources: Sequence[TextSource], model: Any, tokenizer: Any, *, samples: int, length: int, seed: int
) -> torch.Tensor:
    """Return calibration windows, mixed from the sources in equal shares.

    Args:
        sources: Where the text comes from.
        model: The model, for `self`.
        tokenizer: Its tokenizer.
        samples: Windows in all.
        length: Tokens in a window.
        seed: Seed of the draw.

    Returns:
        Token ids, int64, shape (samples, length).

    Raises:
        DataError: A source cannot be read or is too short, or there are more sources than windows.
    """
    if samples < len(sources):
        raise DataError(f"{len(sources)} text sources need at least as many calibration samples, not {samples}")
    parts = []
    for source, share in portions(sources, samples):
        if source.is_self:
            parts.append(sample_text(model, tokenizer, length, share, seed=seed).input_ids)
        else:
            parts.append(token_windows(source.documents(), tokenizer, length, share, seed=seed, label=source.label))
    return torch.cat(parts)[_order(samples, seed)]


def window_kinds(sources: Sequence[TextSource], samples: int, *, seed: int) -> torch.Tensor:
    """Return which source each of the windows of `calibration_windows` is from.

    Args:
        sources: Where the text comes from.
        samples: Windows in all.
        seed: Seed of the draw.

    Returns:
        Number of the source, one that is named twice counted once: int64, shape (samples,).
    """
    counts = torch.tensor([share for _, share in portions(sources, samples)])
    return torch.arange(len(counts)).repeat_interleave(counts)[_order(samples, seed)]


def _order(samples: int, seed: int) -> torch.Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))


_FURTHER = 1_000_003
"""Added to the seed for windows of the model's own that calibration has not seen; far from any seed a person types."""


def further_windows(
    sources: Sequence[TextSource],
    model: Any,
    tokenizer: Any,
    *,
    samples: int,
    length: int,
    seed: int,
    calibrated: Sequence[TextSource],
    calibration_samples: int,
    calibration_length: int,
) -> torch.Tensor:
    """Return windows that calibration does not read, mixed from the sources in equal shares.

    A text that calibration reads as well is drawn in the same order, and windows are taken from behind the tokens
    that calibration takes: no token is in both. Files are the same when their contents are, whatever their names.
    From the model itself they are sampled with another seed.

    Args:
        sources: Where the text comes from; one that is named twice counts once.
        model: The model, for `self`.
        tokenizer: Its tokenizer.
        samples: Windows in all.
        length: Tokens in a window.
        seed: Seed of the calibration's draw.
        calibrated: The calibration's sources.
        calibration_samples: Its windows in all.
        calibration_length: Tokens in each.

    Returns:
        Token ids, int64, shape (samples, length).

    Raises:
        DataError: A source cannot be read or is too short, or there are more sources than windows.
    """
    calibrating = portions(calibrated, calibration_samples)
    taken = {identity(source): share * calibration_length for source, share in calibrating}
    unique = {identity(source): source for source in sources}
    if samples < len(unique):
        raise DataError(f"{len(unique)} text sources need at least as many samples to measure on, not {samples}")
    parts = []
    for (name, source), share in zip(unique.items(), equal_shares(samples, len(unique)), strict=True):
        if source.is_self:
            parts.append(sample_text(model, tokenizer, length, share, seed=seed + _FURTHER).input_ids)
        else:
            skip = taken.get(name, 0)
            documents = source.documents()
            parts.append(token_windows(documents, tokenizer, length, share, seed=seed, label=source.label, skip=skip))
    return torch.cat(parts)
