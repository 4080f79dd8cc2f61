"""Perplexity, bits per byte, divergence and agreement on a text, as measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.progress import note, progress_bar
from ..report.measurement import Measurement
from ..text.token_map import TokenMap
from .passages import Passage, TextWindows, retokenize
from .shared_windows import SharedWindow
from .text_statistics import (
    Estimate,
    TextQuality,
    mean_estimate,
    perplexity_estimate,
    shared_statistics,
    token_statistics,
)


@dataclass(frozen=True)
class WindowFigures:
    """Figures of a model on a text, window by window: the basis of its measurements and their comparison.

    Args:
        nll: Negative log-likelihood of each window's predicted tokens, nats, summed.
        tokens: Predicted tokens in each window.
        bytes: Bytes of their text in UTF-8; None where unknown.
        divergence: KL divergence from the base, nats per token, the mean over each window; None without a base.
        agreement: Share of tokens whose most likely next token is the base's; None without a base.
        shared: Positions of each window at which divergence and agreement are compared, where the base has other
            tokens; None where it has the same, and all predicted tokens are compared.
    """

    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...] | None = None
    divergence: tuple[float, ...] | None = None
    agreement: tuple[float, ...] | None = None
    shared: tuple[int, ...] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WindowFigures:
        """Build figures from plain values."""
        found: dict[str, Any] = {name: None if values is None else tuple(values) for name, values in data.items()}
        return cls(**found)


def window_figures(
    model: Any,
    base: Any | None,
    windows: TextWindows,
    label: str,
    names: tuple[str, str] = ("the model", "the base"),
) -> tuple[WindowFigures | None, WindowFigures]:
    """Run a text through a model, and through a base with the same tokenizer.

    Args:
        model: The model.
        base: Its base, or None.
        windows: The text.
        label: Name of the text.
        names: Names of model and base, for messages.

    Returns:
        The base's figures (None without a base) and the model's.

    Raises:
        NotFiniteError: A model gives NaN or infinite values.
    """
    with progress_bar(f"perplexity on {label}", len(windows)) as advance:
        found = token_statistics(model, base, windows.ids, advance=advance, names=names, label=label)
    # Of several tokens that begin every window, none is text.
    found = {name: values[:, windows.context - 1 :] for name, values in found.items()}
    count = (windows.ids.shape[1] - windows.context,) * len(windows)
    texts = None if windows.passages is None else tuple(passage.bytes for passage in windows.passages)
    own = WindowFigures(_sums(found["nll"]), count, texts)
    if base is None:
        return None, own
    means = (tuple(found[name].mean(dim=1).tolist()) for name in ("kl", "agree"))
    return WindowFigures(_sums(found["base_nll"]), count, texts), WindowFigures(own.nll, count, texts, *means)


def _sums(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(values.sum(dim=1).tolist())


def passage_figures(
    model: Any, tokenizer: Any, passages: tuple[Passage, ...], label: str, name: str = "the model"
) -> WindowFigures:
    """Run passages through a model with a different tokenizer: only its bits per byte can be compared.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        passages: The text.
        label: Name of the text.
        name: Name of the model, for messages.

    Raises:
        DataError: The tokenizer has no token to start a window with.
        NotFiniteError: The model gives NaN or infinite values.
    """
    nll, tokens = [], []
    with progress_bar(f"bits per byte on {label}", len(passages)) as advance:
        for passage in passages:
            ids, context = retokenize(passage, tokenizer)
            found = token_statistics(model, None, ids[None], advance=advance, names=(name, ""), label=label)
            values = found["nll"][0, context - 1 :]
            nll.append(values.sum().item())
            tokens.append(len(values))
    return WindowFigures(tuple(nll), tuple(tokens), tuple(passage.bytes for passage in passages))


def shared_figures(
    model: Any,
    base: Any,
    windows: Sequence[SharedWindow],
    tokens: TokenMap,
    label: str,
    names: tuple[str, str] = ("the model", "the base"),
) -> tuple[WindowFigures, WindowFigures]:
    """Run a text through a model, and through a base with more tokens: the same bytes, each in its own tokens.

    Divergence and agreement are those at positions where both have read the same text, the base's predictions carried
    to the model's tokens. Where both have the same tokens everywhere, these are the figures of `window_figures`.

    Args:
        model: The model.
        base: Its base.
        windows: The text.
        tokens: How the base's tokens correspond to the model's.
        label: Name of the text.
        names: Names of model and base, for messages.

    Returns:
        The base's figures and the model's.

    Raises:
        NotFiniteError: A model gives NaN or infinite values.
    """
    sums: dict[str, list[float]] = {"base_nll": [], "nll": [], "kl": [], "agree": []}
    with progress_bar(f"quality on {label}", len(windows)) as advance:
        for window in windows:
            found = shared_statistics(model, base, window, tokens, names=names, label=label)
            for name, values in found.items():
                sums[name].append((values.sum() if "nll" in name else values.mean()).item())
            advance(1)
    size = tuple(window.bytes for window in windows)
    base_count = tuple(len(window.base_ids) - window.base_context for window in windows)
    count = tuple(len(window.ids) - window.context for window in windows)
    shared = None if same_tokens(windows, tokens) else tuple(len(window.at) for window in windows)
    return (
        WindowFigures(tuple(sums["base_nll"]), base_count, size),
        WindowFigures(tuple(sums["nll"]), count, size, tuple(sums["kl"]), tuple(sums["agree"]), shared),
    )


def same_tokens(windows: Sequence[SharedWindow], tokens: TokenMap) -> bool:
    """Whether two vocabularies differ in the numbers of their tokens alone, so that figures per token are comparable.

    Args:
        windows: A text in both.
        tokens: How they correspond.
    """
    return tokens.keeps_all and all(window.all_shared for window in windows)


def tokens_per_byte(figures: WindowFigures) -> float | None:
    """Return the tokens that a model needs for a byte of the text; None where it has no bytes, or they are unknown.

    Args:
        figures: The model's figures on the text.
    """
    size = sum(figures.bytes or ())
    return sum(figures.tokens) / size if size else None


def bits_per_byte(figures: WindowFigures) -> Estimate | None:
    """Return the bits that a model needs for a byte of the text: sum of -log2 p(token) over the bytes of their text.

    Unlike perplexity it does not depend on how long the tokens are. The standard error is that of a ratio of means
    over windows. None where the bytes are unknown, or there are none.

    Args:
        figures: The model's figures on the text.
    """
    if not figures.bytes or not sum(figures.bytes):
        return None
    bits = torch.tensor(figures.nll, dtype=torch.float64) / math.log(2)
    size = torch.tensor(figures.bytes, dtype=torch.float64)
    value = (bits.sum() / size.sum()).item()
    rest = bits - value * size
    stderr = (rest.std() / size.mean()).item() / math.sqrt(len(bits)) if len(bits) > 1 else None
    return Estimate(value, stderr, len(bits), sum(figures.tokens))


def figure_measurements(
    figures: WindowFigures,
    label: str,
    settings: dict[str, Any],
    *,
    per_token: bool = True,
    counts_tokens: bool = False,
) -> tuple[Measurement, ...]:
    """Return a text's figures as measurements.

    Args:
        figures: The model's figures on the text.
        label: Name of the text.
        settings: Settings for the report; the number of tokens, and of bytes, is added.
        per_token: Include perplexity, which is not comparable between tokenizers.
        counts_tokens: Include tokens per byte, which differ where a vocabulary was made smaller.
    """
    tokens, perplexity = sum(figures.tokens), None
    if per_token:
        means = torch.tensor(figures.nll, dtype=torch.float64) / torch.tensor(figures.tokens, dtype=torch.float64)
        perplexity = perplexity_estimate(means, tokens)
        if perplexity is None:
            note(
                f"the loss on {label} is {means.mean().item():.0f} nats a token: its perplexity is too large for a "
                "number, and is left out"
            )
    shared = sum(figures.shared or ())
    how = {**settings, "carried": True, "shared": shared / tokens} if shared else settings
    divergence, agreement = (_estimate(each, tokens) for each in (figures.divergence, figures.agreement))
    of_text = name_measurements(TextQuality(perplexity), label, settings)
    of_text += _per_byte(figures, label, settings, counts_tokens=counts_tokens)
    return of_text + name_measurements(TextQuality(None, divergence, agreement), label, how)


def _per_byte(
    figures: WindowFigures, label: str, settings: dict[str, Any], *, counts_tokens: bool
) -> tuple[Measurement, ...]:
    """Return the figures for a byte of text; none where its bytes are unknown."""
    estimate, ratio = bits_per_byte(figures), tokens_per_byte(figures)
    if estimate is None or ratio is None:
        return ()
    how = {**settings, "tokens": sum(figures.tokens), "bytes": sum(figures.bytes or ())}
    found: tuple[Measurement, ...] = (
        Measurement("bits_per_byte", label, estimate.value, estimate.stderr, estimate.windows, how),
    )
    if counts_tokens:  # counted on this text, not estimated
        found += (Measurement("tokens_per_byte", label, ratio, None, estimate.windows, how),)
    return found


def _estimate(means: tuple[float, ...] | None, tokens: int) -> Estimate | None:
    return None if means is None else mean_estimate(torch.tensor(means, dtype=torch.float64), tokens)


def text_measurements(
    model: Any, base: Any | None, windows: torch.Tensor | TextWindows, label: str, settings: dict[str, Any]
) -> tuple[tuple[Measurement, ...], tuple[Measurement, ...]]:
    """Measure a model on a text, against its base where there is one.

    Args:
        model: The model.
        base: Its base, with the same tokenizer, or None.
        windows: Token ids, shape (windows, length); or windows with their text, which gives bits per byte too.
        label: Name of the text.
        settings: Settings for the report, beyond the number and length of the windows.

    Returns:
        The base's measurements (empty without a base) and the model's.
    """
    text = windows if isinstance(windows, TextWindows) else TextWindows(windows)
    old, new = window_figures(model, base, text, label)
    return figure_measurements(old, label, settings) if old else (), figure_measurements(new, label, settings)


def name_measurements(found: TextQuality | None, label: str, settings: dict[str, Any]) -> tuple[Measurement, ...]:
    """Return a text's figures as measurements.

    Args:
        found: The figures; None for no measurements.
        label: Name of the text.
        settings: Settings for the report; the number of tokens is added.
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
