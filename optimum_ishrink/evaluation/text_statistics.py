"""Perplexity of a model on a text, and the divergence of a smaller model's predictions from its base's."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.finite import check_logits
from ..core.micro_batch import MicroBatch, is_measured
from ..errors import NotFiniteError
from ..modeling.given_states import logits_by_window
from ..modeling.head import logits_at_once
from ..text.token_map import TokenMap
from .shared_windows import SharedWindow

_CHUNK = 2**20
"""Logits held in float32 at once: 4 MB, so that what one step writes is near when the next one reads it."""

_MOST = 64
"""Windows at once at most on a GPU: more of them make it no faster."""

_REMEDY = "shorten the windows (--eval-length), or read the layers from disk (--offload always --device cpu)"


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
    return log_p.exp().mul_(log_p - log_q).sum(-1)


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
        DeviceMemoryError: One window does not fit into memory.
    """
    columns: dict[str, list[torch.Tensor]] = {}
    run, run_base = logits_by_window(model, windows), None if base is None else logits_by_window(base, windows)

    def compare(part: slice) -> dict[str, torch.Tensor]:
        ids = windows[part].to(model.device)
        logits = run(part)[:, :-1].flatten(0, 1)
        base_logits = None if run_base is None else run_base(part)[:, :-1].flatten(0, 1).to(logits.device)
        found = compare_logits(logits, base_logits, ids[:, 1:].flatten())
        seen = [] if base_logits is None else [(base_logits, base, ids, names[1])]
        _check_finite(found, [*seen, (logits, model, ids, names[0])], label)
        return {name: values.view(len(ids), -1) for name, values in found.items()}

    # One at a time on a CPU: a second one at once saves nothing there.
    micro = MicroBatch(1, model.device, what="evaluation", remedy=_REMEDY, most=_MOST)
    for found in micro.each(len(windows), compare):
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
        for _ in found["nll"]:
            advance(1)
    return {name: torch.cat(values) for name, values in columns.items()}


def _check_finite(
    found: Mapping[str, torch.Tensor], seen: Sequence[tuple[torch.Tensor, Any, torch.Tensor, str]], label: str
) -> None:
    """Raise an error if a value is not finite.

    Args:
        found: The values.
        seen: Logits, and the model, tokens and name that they are from; the last is the one that is measured.
        label: Name of the text.

    Raises:
        NotFiniteError: A value is not finite; the message names the model and the module where it is so first.
    """
    if all(bool(values.isfinite().all()) for values in found.values()):
        return
    for logits, model, ids, name in seen:
        check_logits(logits, model, ids.to(model.device), name, label)
    raise NotFiniteError(
        f"{seen[-1][3]} predicts {label} so badly that no figure holds its loss; try dtype='float32', or another text"
    )


@torch.no_grad()
def shared_statistics(
    model: Any,
    base: Any,
    window: SharedWindow,
    tokens: TokenMap,
    *,
    names: tuple[str, str] = ("the model", "the base"),
    label: str = "the text",
) -> dict[str, torch.Tensor]:
    """Run a window through a model and through a base with more tokens, each in its own.

    Args:
        model: The model.
        base: Its base.
        window: The text.
        tokens: How the base's tokens correspond to the model's.
        names: Names of model and base, for messages.
        label: Name of the text, for messages.

    Returns:
        `nll` and `base_nll`, one value per token that each predicts; `kl` and `agree`, one per position that both
        predict at. float64, one-dimensional.

    Raises:
        NotFiniteError: A model gives NaN or infinite values; the message names it, the text and the module.
    """
    ids, base_ids = window.ids[None].to(model.device), window.base_ids[None].to(base.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    base_logits = base(input_ids=base_ids, use_cache=False).logits[0, :-1].to(logits.device)
    labels, base_labels = ids[0, 1:], base_ids[0, 1:].to(logits.device)
    at, base_at = window.at.to(logits.device), window.base_at.to(logits.device)
    found = compare_logits(
        logits[at], base_logits[base_at], labels[at], base_labels=base_labels[base_at], tokens=tokens
    )
    # Within a removed token there is nothing to compare, but there is a loss.
    for name, each, wanted, shared, context in (
        ("nll", logits, labels, at, window.context),
        ("base_nll", base_logits, base_labels, base_at, window.base_context),
    ):
        alone = torch.ones(len(wanted), dtype=torch.bool, device=wanted.device)
        alone[shared] = False
        alone[: context - 1] = False
        if alone.any():
            found[name] = torch.cat([found[name], compare_logits(each[alone], None, wanted[alone])["nll"]])
    _check_finite(found, [(base_logits, base, base_ids, names[1]), (logits, model, ids, names[0])], label)
    return found


@torch.no_grad()
def compare_logits(
    logits: torch.Tensor,
    base_logits: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    base_labels: torch.Tensor | None = None,
    tokens: TokenMap | None = None,
) -> dict[str, torch.Tensor]:
    """Return one value per predicted token, from given logits.

    Positions are compared in chunks, so that the logits of a long window are never all in float32 at once.

    Args:
        logits: The model's, shape (tokens, vocabulary).
        base_logits: The base's, on the same device, or None. They have the same shape, unless `tokens` is given.
        labels: The actual next tokens, int64, shape (tokens,).
        base_labels: Those of the base where they have other numbers, or are longer; the same by default.
        tokens: How the base's tokens correspond to the model's where it has more of them: its distribution is carried
            to the model's tokens, and so is its most likely token.

    Returns:
        `nll`, and with a base `base_nll`, `kl` and `agree`: float64 on the CPU, shape (tokens,).
    """
    rows: dict[str, list[torch.Tensor]] = {}
    widest = max(each.shape[-1] for each in (logits, base_logits) if each is not None)
    positions = max(1, (logits_at_once(logits.device) if is_measured(logits.device) else _CHUNK) // widest)
    for start in range(0, len(labels), positions):
        part = slice(start, start + positions)
        # Every figure comes from one conversion and one softmax: they cost as much as a small model's layers.
        own = logits[part].float()
        log_q = own.log_softmax(-1)
        found = {"nll": _nll(log_q, labels[part])}
        if base_logits is not None:
            base = base_logits[part].float()
            log_p = base.log_softmax(-1)
            best = _most_likely(base)
            found["base_nll"] = _nll(log_p, (labels if base_labels is None else base_labels)[part])
            if tokens is not None:
                log_p, best = tokens.carry(base, log_p), tokens.carried.to(best.device)[best]
                # What nothing is carried to has the log-probability -inf, and no part in the sum.
                log_p = log_p.clamp_(min=torch.finfo(log_p.dtype).min)
            found["kl"] = _divergence(log_p, log_q)
            found["agree"] = best == _most_likely(own)
        for name, values in found.items():
            rows.setdefault(name, []).append(values.double().cpu())
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _most_likely(logits: torch.Tensor) -> torch.Tensor:
    """Return each position's most likely token. On a CPU NumPy finds it in a tenth of torch's time."""
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(-1)


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
