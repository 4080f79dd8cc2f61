"""Whether the exported model says what the checkpoint says: both on the same tokens, in llama.cpp or transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..core.progress import progress_bar
from ..core.table import Row
from ..errors import VerificationError
from ..evaluation.text_statistics import mean_over_windows
from ..report.measurement import Measurement
from ..text.sources import PYDOC, TextSource
from ..text.windows import token_windows
from .process import run_worker

EXACT_LIMIT = 0.005
"""Nats per token that an export of 16 bits or more may be from its checkpoint. A right one stays below 0.0001; a wrong
rotary base, norm or head is above 0.1."""


@dataclass(frozen=True)
class AgreementSettings:
    """What is compared.

    Args:
        windows: Windows of text.
        length: Tokens in each.
        predicted: Predictions at the end of each that are compared; the tokens before are context only.
        candidates: Tokens whose probability llama.cpp is asked for: its most likely ones. A whole vocabulary would
            take a second per prediction, most of it for writing numbers down.
        lines: Lines of the text whose tokens are compared.
        documents: Documents of the text that all of this is taken from.
    """

    windows: int = 4
    length: int = 64
    predicted: int = 32
    candidates: int = 1000
    lines: int = 100
    documents: int = 8


@dataclass(frozen=True)
class Agreement:
    """What came of the comparison.

    Args:
        divergence: KL divergence from the checkpoint's predictions to llama.cpp's, nats per token. Tokens beyond the
            candidates count as one, which can only make it smaller.
        top1: Share of predictions whose most likely token is the same.
        coverage: Mean probability that the checkpoint gives to the candidates together; 1 when they are all tokens.
        same_lines: Lines that llama.cpp's tokenizer splits as the checkpoint's does.
        lines: Lines that were compared.
    """

    divergence: Measurement
    top1: Measurement
    coverage: float
    same_lines: int
    lines: int


def binned_divergence(log_p: torch.Tensor, top: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return KL(p || q) with every token that q does not name in one bin, and the share of p that q names.

    Merging outcomes never makes a KL divergence larger, so this is a lower bound, and exact when q names all tokens.

    Args:
        log_p: Natural log-probabilities of all tokens, float64, shape (vocabulary,).
        top: Tokens that q names, each with its natural log-probability.
    """
    ids = torch.tensor([token for token, _ in top])
    log_q = torch.tensor([value for _, value in top], dtype=torch.float64)
    named = log_p[ids]
    inside = (named.exp() * (named - log_q)).sum().item()
    share = min(named.exp().sum().item(), 1.0)
    if len(top) >= len(log_p):
        return inside, share
    # Rounding may leave nothing, or less, for the other tokens.
    rest_p, rest_q = max(1 - share, 1e-12), max(1 - log_q.exp().sum().item(), 1e-12)
    return inside + rest_p * math.log(rest_p / rest_q), share


def measure_agreement(
    model: Any,
    tokenizer: Any,
    path: Path,
    *,
    threads: int,
    settings: AgreementSettings | None = None,
    run: Callable[[Mapping[str, Any]], dict[str, Any]] = run_worker,
) -> Agreement:
    """Compare a GGUF file in llama.cpp with the checkpoint in transformers.

    Args:
        model: The checkpoint, loaded in float32 on the CPU: what llama.cpp computes with.
        tokenizer: Its tokenizer.
        path: The file.
        threads: Threads for llama.cpp.
        settings: What is compared; the defaults take seconds.
        run: Runs llama.cpp in a process.

    Raises:
        SourceError: llama.cpp cannot load the file.
    """
    settings = _fitting(settings or AgreementSettings(), model.config)
    predicted = settings.predicted
    source = TextSource(PYDOC)
    windows = _windows(source, tokenizer, settings)
    lines = _lines(source, settings.lines)
    vocabulary = int(model.config.vocab_size)
    asked = {
        "runtime": "llama.cpp",
        "length": settings.length,
        "predicted": predicted,
        "candidates": min(settings.candidates, vocabulary),
        "fingerprint": source.fingerprint(),
    }
    request = {"task": "predict", "model": str(path), "threads": threads, "predicted": predicted, "lines": lines}
    with progress_bar("comparing with transformers", 1 + len(windows)) as advance, torch.inference_mode():
        said = run({**request, "candidates": asked["candidates"], "windows": windows.tolist()})
        advance(1)
        divergence = torch.zeros(len(windows), predicted, dtype=torch.float64)
        same, covered = torch.zeros_like(divergence), torch.zeros_like(divergence)
        for i, window in enumerate(windows):
            # One by one, not as a batch: the logits of a whole batch would be the largest thing in memory.
            log_p = _predict(model, window, predicted)
            for j, top in enumerate(said["top"][i]):
                divergence[i, j], covered[i, j] = binned_divergence(log_p[j], top)
                same[i, j] = float(top[0][0] == int(log_p[j].argmax()))
            advance(1)
    equal = sum(
        found == tokenizer(line, add_special_tokens=False)["input_ids"]
        for found, line in zip(said["lines"], lines, strict=True)
    )
    kl, top1 = _measured(source, divergence, same, asked)
    return Agreement(kl, top1, covered.mean().item(), equal, len(lines))


def measure_checkpoints(
    load_checkpoint: Callable[[], Any],
    load_export: Callable[[], Any],
    tokenizer: Any,
    settings: AgreementSettings | None = None,
) -> tuple[Measurement, Measurement]:
    """Compare two checkpoints in transformers on the text that GGUF files are compared on, over the whole vocabulary.

    In memory at once: one of the models, and the predictions of the first.

    Args:
        load_checkpoint: Loads the checkpoint, in float32.
        load_export: Loads what was made of it, as its readers do.
        tokenizer: Their tokenizer.
        settings: What is compared; the defaults take seconds.

    Returns:
        KL divergence from the checkpoint's predictions to the export's in nats per token, and the share of predictions
        whose most likely token is the same.

    Raises:
        VerificationError: The export's predictions are not numbers.
    """
    source = TextSource(PYDOC)
    model = load_checkpoint()
    settings = _fitting(settings or AgreementSettings(), model.config)
    windows = _windows(source, tokenizer, settings)
    divergence = torch.zeros(len(windows), settings.predicted, dtype=torch.float64)
    same = torch.zeros_like(divergence)
    with progress_bar("comparing with the checkpoint", 2 * len(windows)) as advance, torch.inference_mode():
        before = []
        for window in windows:
            before.append(_predict(model, window, settings.predicted).float())
            advance(1)
        del model
        model = load_export()
        for i, window in enumerate(windows):
            log_p, log_q = before[i].double(), _predict(model, window, settings.predicted)
            divergence[i] = (log_p.exp() * (log_p - log_q)).sum(-1)
            same[i] = (log_p.argmax(-1) == log_q.argmax(-1)).double()
            advance(1)
    if not divergence.isfinite().all():
        raise VerificationError("the export's predictions are not numbers; nothing was kept")
    asked = {
        "runtime": "transformers",
        "length": settings.length,
        "predicted": settings.predicted,
        "fingerprint": source.fingerprint(),
    }
    return _measured(source, divergence, same, asked)


def _predict(model: Any, window: torch.Tensor, predicted: int) -> torch.Tensor:
    """Return the log-probabilities at the end of a window, float64, shape (predicted, vocabulary)."""
    logits: torch.Tensor = model(window[None]).logits[0, -predicted:]
    return logits.double().log_softmax(-1)


def _fitting(settings: AgreementSettings, config: Any) -> AgreementSettings:
    """Return the settings with windows that the model can read."""
    limit = getattr(config, "max_position_embeddings", None) or settings.length
    length = min(settings.length, limit)
    return replace(settings, length=length, predicted=min(settings.predicted, length))


def _windows(source: TextSource, tokenizer: Any, settings: AgreementSettings) -> torch.Tensor:
    # The first documents give far more tokens than are wanted, and to split all of the text takes seconds.
    documents = islice(source.documents(), settings.documents)
    return token_windows(documents, tokenizer, settings.length, settings.windows, seed=0, label=source.label)


def _measured(
    source: TextSource, divergence: torch.Tensor, same: torch.Tensor, asked: Mapping[str, Any]
) -> tuple[Measurement, Measurement]:
    kl, top1 = mean_over_windows(divergence), mean_over_windows(same)
    return (
        Measurement("kl_divergence", source.label, kl.value, kl.stderr, kl.windows, asked),
        Measurement("top1_agreement", source.label, top1.value, top1.stderr, top1.windows, asked),
    )


def agreement_rows(divergence: Measurement, top1: Measurement, *, rest: str = "", dtypes: str) -> list[Row]:
    """Return what a table says of a comparison.

    Args:
        divergence: KL divergence from the checkpoint's predictions.
        top1: Share of predictions whose most likely token is the same.
        rest: What has to be known of the divergence besides.
        dtypes: What was compared in.
    """
    where = f"{divergence.n} windows x {divergence.settings['predicted']} predictions of {divergence.dataset}"
    return [
        (
            "KL divergence from the checkpoint",
            f"{divergence.value:.5f} ± {divergence.stderr or 0:.5f} nats/token{rest}",
        ),
        ("top-1 agreement with it", f"{top1.value:.3f} ± {top1.stderr or 0:.3f}"),
        ("measured on", f"{where}, {dtypes}"),
    ]


def _lines(source: TextSource, count: int) -> list[str]:
    found: list[str] = []
    for document in source.documents():
        found += [line for line in document.splitlines() if line.strip()]
        if len(found) >= count:
            break
    return found[:count]
