"""Perplexity of a model on a text, and the divergence of a smaller model's predictions from its base's."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..core.finite import check_logits
from ..errors import NotFiniteError

_CHUNK = 2**22
"""Logits held in float32 at once: 17 MB. Above 32 MB the C library asks the kernel for fresh pages every time."""


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens with its standard error.

    Args:
        value: The figure.
        stderr: Its standard error, from the spread between windows, which are the independent observations.
        windows: Number of windows.
        tokens: Number of predicted tokens.
    """

    value: float
    stderr: float | None
    windows: int
    tokens: int


@dataclass(frozen=True)
class TextQuality:
    """Quality of one model on a text, or of a model compared with its base.

    Args:
        perplexity: exp of the mean negative log-likelihood of the next token; None where that is too large for a
            number.
        divergence: KL divergence from the base's next-token distribution to the model's, nats per token; None without
            a base.
        agreement: Share of tokens whose most likely next token is the same as the base's; None without a base.
    """

    perplexity: Estimate | None
    divergence: Estimate | None = None
    agreement: Estimate | None = None


def mean_over_windows(values: torch.Tensor) -> Estimate:
    """Return the mean of per-token values, with the standard error of the mean over windows.

    Tokens within a window are not independent; windows nearly are. With one window there is no spread to measure.

    Args:
        values: Shape (windows, tokens), float64.
    """
    return mean_estimate(values.mean(dim=1), values.numel())


def mean_estimate(means: torch.Tensor, tokens: int) -> Estimate:
    """Return the mean of windows' means with its standard error.

    Args:
        means: One value per window, float64.
        tokens: Predicted tokens in all windows.
    """
    stderr = means.std(unbiased=True).item() / math.sqrt(len(means)) if len(means) > 1 else None
    return Estimate(means.mean().item(), stderr, len(means), tokens)


def kl_divergence(base_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return KL(base || model) of next-token distributions, in nats.

    Args:
        base_logits: Shape (..., vocabulary).
        logits: The same shape.

    Returns:
        float32, shape (...). Exactly zero for equal logits.
    """
    return _divergence(base_logits.float().log_softmax(-1), logits.float().log_softmax(-1))


def _divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
def token_statistics(
    model: Any,
    base: Any | None,
    windows: torch.Tensor,
    *,
    advance: Callable[[int], None] = lambda steps: None,
    names: tuple[str, str] = ("the model", "the base"),
    label: str = "the text",
) -> dict[str, torch.Tensor]:
    """Run windows through a model, and through its base if given, and return one value per predicted token.

    Args:
        model: The model.
        base: Its base, or None.
        windows: Token ids, shape (windows, length). The first token of a window is context only.
        advance: Called with 1 after each window.
        names: Names of model and base, for messages.
        label: Name of the text, for messages.

    Returns:
        `nll`, and with a base `base_nll`, `kl` and `agree`: float64, shape (windows, length - 1).

    Raises:
        NotFiniteError: A model gives NaN or infinite values; the message names it, the text and the module.
    """
    columns: dict[str, list[torch.Tensor]] = {}
    for window in windows:
        ids = window[None].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        base_logits = None
        if base is not None:
            base_logits = base(input_ids=ids.to(base.device), use_cache=False).logits[0, :-1].to(logits.device)
        found = compare_logits(logits, base_logits, ids[0, 1:])
        if not all(bool(values.isfinite().all()) for values in found.values()):
            if base is not None and base_logits is not None:
                check_logits(base_logits, base, ids.to(base.device), names[1], label)
            check_logits(logits, model, ids, names[0], label)
            raise NotFiniteError(
                f"{names[0]} predicts {label} so badly that no figure holds its loss; try dtype='float32', or another "
                "text"
            )
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
        advance(1)
    return {name: torch.stack(values) for name, values in columns.items()}


@torch.no_grad()
def compare_logits(
    logits: torch.Tensor, base_logits: torch.Tensor | None, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return one value per predicted token, from given logits.

    Positions are compared in chunks, so that the logits of a long window are never all in float32 at once.

    Args:
        logits: The model's, shape (tokens, vocabulary).
        base_logits: The base's, the same shape and device, or None.
        labels: The actual next tokens, int64, shape (tokens,).

    Returns:
        `nll`, and with a base `base_nll`, `kl` and `agree`: float64 on the CPU, shape (tokens,).
    """
    rows: dict[str, list[torch.Tensor]] = {}
    positions = max(1, _CHUNK // logits.shape[-1])
    for start in range(0, len(labels), positions):
        part = slice(start, start + positions)
        # Every figure comes from one conversion and one softmax: they cost as much as a small model's layers.
        own = logits[part].float()
        log_q = own.log_softmax(-1)
        found = {"nll": _nll(log_q, labels[part])}
        if base_logits is not None:
            base = base_logits[part].float()
            log_p = base.log_softmax(-1)
            found["base_nll"] = _nll(log_p, labels[part])
            found["kl"] = _divergence(log_p, log_q)
            found["agree"] = base.argmax(-1) == own.argmax(-1)
        for name, values in found.items():
            rows.setdefault(name, []).append(values.double().cpu())
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _nll(log_probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -log_probabilities.gather(-1, labels[:, None]).squeeze(-1)


LARGEST_LOSS = math.log(sys.float_info.max)
"""Mean loss, in nats per token, up to which its exponential is a number: 709.8."""


def perplexity(nll: torch.Tensor) -> Estimate | None:
    """Return the perplexity of per-token negative log-likelihoods; its standard error by the delta method.

    None where it is too large for a number.

    Args:
        nll: Shape (windows, tokens), nats.
    """
    return perplexity_estimate(nll.mean(dim=1), nll.numel())


def perplexity_estimate(means: torch.Tensor, tokens: int) -> Estimate | None:
    """Return the perplexity of windows' mean negative log-likelihoods; its standard error by the delta method.

    None where it is too large for a number, from `LARGEST_LOSS` on; so is a standard error alone.

    Args:
        means: One value per window, nats per token, float64.
        tokens: Predicted tokens in all windows.
    """
    mean = mean_estimate(means, tokens)
    if mean.value >= LARGEST_LOSS:
        return None
    value = math.exp(mean.value)
    stderr = None if mean.stderr is None else value * mean.stderr
    return Estimate(value, stderr if stderr is None or math.isfinite(stderr) else None, mean.windows, mean.tokens)
