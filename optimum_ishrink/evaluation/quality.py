"""Perplexity, divergence and agreement on a text, as measurements."""

from __future__ import annotations

from typing import Any

import torch

from ..artifacts import Measurement
from ..progress import progress_bar
from .text import Estimate, TextQuality, quality, token_statistics


def text_measurements(
    model: Any, base: Any | None, windows: torch.Tensor, label: str, settings: dict[str, Any]
) -> tuple[tuple[Measurement, ...], tuple[Measurement, ...]]:
    """Measure a model on a text, against its base where there is one.

    Args:
        model: The model.
        base: Its base, or None.
        windows: Token ids, shape (windows, length).
        label: Name of the text.
        settings: What the report shall say of the text beyond the number and length of its windows.

    Returns:
        The base's measurements (empty without a base) and the model's.
    """
    with progress_bar(f"perplexity on {label}", len(windows)) as advance:
        base_quality, model_quality = quality(token_statistics(model, base, windows, advance=advance))
    return name_measurements(base_quality, label, settings), name_measurements(model_quality, label, settings)


def name_measurements(found: TextQuality | None, label: str, settings: dict[str, Any]) -> tuple[Measurement, ...]:
    """Return a text's figures as measurements.

    Args:
        found: The figures; None gives none.
        label: Name of the text.
        settings: What the report shall say of the text; the number of tokens is added.
    """
    if found is None:
        return ()
    named: list[tuple[str, Estimate | None]] = [
        ("perplexity", found.perplexity),
        ("kl_divergence", found.divergence),
        ("top1_agreement", found.agreement),
    ]
    return tuple(
        Measurement(
            metric, label, estimate.value, estimate.stderr, estimate.windows, {**settings, "tokens": estimate.tokens}
        )
        for metric, estimate in named
        if estimate is not None
    )
