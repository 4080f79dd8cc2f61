"""Whether an export predicts what its checkpoint predicts: both on the same tokens, in llama.cpp or transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..architectures.runtime_limits import ignored_window, sliding_window
from ..core.finite import check_logits, check_predictions
from ..core.limits import check_tokens
from ..core.progress import progress_bar
from ..errors import VerificationError
from ..evaluation.text_statistics import mean_over_windows
from ..report.measurement import Measurement
from ..text.sources import PYDOC, TextSource
from ..text.windows import beginning_name, token_windows
from .probe_lines import PROBES
from .worker_process import run_worker

EXACT_LIMIT = 0.005
"""Largest KL divergence in nats per token of an export in 16 bits or more. A correct one stays below 0.0001; a wrong
rotary base, norm or head is above 0.1."""


BEHIND_WINDOW = 256
"""Tokens by which windows of text are longer than a sliding window. The predictions at their end are those of layers
that leave out some 200 tokens, and no window of text is short enough for llama.cpp to compute it in one piece."""

_TOKENS = 4096
"""Tokens that are compared where windows of text are long, as far as two of them do not take more."""


@dataclass(frozen=True)
class AgreementSettings:
    """What is compared.

    Args:
        windows: Windows of text; fewer where a model has a sliding window of thousands of tokens.
        length: Tokens in each. Where a model has a sliding window that llama.cpp applies, windows of text are longer
            than that.
        predicted: Predictions at the end of each that are compared; earlier tokens are context only.
        candidates: Number of most likely tokens whose probability llama.cpp returns. The whole vocabulary would take
            a second per prediction, most of it to write the numbers as text.
        lines: Lines whose tokens are compared: a third are made for what tokenizers split differently, the others are
            of the text.
        documents: Documents of the text that windows and lines come from.
    """

    windows: int = 4
    length: int = 64
    predicted: int = 32
    candidates: int = 1000
    lines: int = 100
    documents: int = 8


@dataclass(frozen=True)
class Agreement:
    """How well a GGUF file in llama.cpp agrees with its checkpoint.

    Args:
        divergence: KL divergence from the checkpoint's predictions to llama.cpp's, nats per token. Tokens outside the
            candidates count as one, which can only make it smaller.
        top1: Share of predictions whose most likely token is the same.
        coverage: Mean probability of all candidates together in the checkpoint; 1 when they are the whole vocabulary.
        same_lines: Lines that llama.cpp's tokenizer splits as the checkpoint's does.
        lines: Lines that were compared.
        different: The lines that it splits otherwise.
    """

    divergence: Measurement
    top1: Measurement
    coverage: float
    same_lines: int
    lines: int
    different: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the agreement as a JSON object, without the text of lines."""
        return {key: value for key, value in asdict(self).items() if key != "different"}


@dataclass(frozen=True)
class CheckpointAgreement:
    """How well a quantised checkpoint agrees with its original, both in transformers.

    Args:
        divergence: KL divergence from the original's predictions, nats per token, over the whole vocabulary.
        top1: Share of predictions whose most likely token is the same.
    """

    divergence: Measurement
    top1: Measurement


def binned_divergence(log_p: torch.Tensor, top: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return KL(p || q) with all tokens that q does not list in one bin, and the probability in p of those it lists.

    Merging outcomes never makes a KL divergence larger, so this is a lower bound, and exact when q lists all tokens.

    Args:
        log_p: Natural log-probabilities of all tokens, float64, shape (vocabulary,).
        top: Tokens that q lists, each with its natural log-probability.
    """
    ids = torch.tensor([token for token, _ in top])
    log_q = torch.tensor([value for _, value in top], dtype=torch.float64)
    listed = log_p[ids]
    inside = (listed.exp() * (listed - log_q)).sum().item()
    share = min(listed.exp().sum().item(), 1.0)
    if len(top) >= len(log_p):
        return inside, share
    # Rounding may leave zero or a negative rest for the other tokens.
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
        model: The checkpoint, loaded in float32 on the CPU, which llama.cpp computes in.
        tokenizer: Its tokenizer.
        path: The file.
        threads: Threads for llama.cpp.
        settings: What is compared; the defaults take seconds.
        run: Runs a task of `worker.py`.

    Raises:
        NotFiniteError: The checkpoint's own predictions are NaN or inf.
        SourceError: llama.cpp cannot load the file.
        VerificationError: llama.cpp's predictions are NaN or inf.
    """
    (found,) = measure_agreements(model, tokenizer, [path], threads=threads, settings=settings, run=run)
    return found


def measure_agreements(
    model: Any,
    tokenizer: Any,
    paths: Sequence[Path],
    *,
    threads: int,
    settings: AgreementSettings | None = None,
    run: Callable[[Mapping[str, Any]], dict[str, Any]] = run_worker,
) -> list[Agreement]:
    """Compare several GGUF files with one checkpoint, as `measure_agreement` does, which predicts once for all.

    Args:
        model: The checkpoint, loaded in float32 on the CPU.
        tokenizer: Its tokenizer.
        paths: The files.
        threads: Threads for llama.cpp.
        settings: What is compared.
        run: Runs a task of `worker.py`.

    Raises:
        NotFiniteError: The checkpoint's own predictions are NaN or inf.
        SourceError: llama.cpp cannot load a file.
        VerificationError: llama.cpp's predictions are NaN or inf.
    """
    settings = _fitting(_behind_window(settings or AgreementSettings(), model.config), model.config)
    predicted = settings.predicted
    source = TextSource(PYDOC)
    windows = _windows(source, tokenizer, settings)
    lines = _lines(source, settings.lines)
    vocabulary = int(model.config.get_text_config().vocab_size)
    conditions = {
        "runtime": "llama.cpp",
        "length": settings.length,
        "predicted": predicted,
        "candidates": min(settings.candidates, vocabulary),
        "fingerprint": source.fingerprint(),
        **_begins_with(tokenizer),
    }
    request = {"task": "predict", "threads": threads, "predicted": predicted, "lines": lines}
    request |= {"candidates": conditions["candidates"], "windows": windows.tolist()}
    check_tokens(windows, vocabulary, tokenizer, source.label, "the model")
    check_predictions(model, windows[:1], "the checkpoint", source.label)
    with progress_bar("comparing with transformers", len(paths) + len(windows)) as advance, torch.inference_mode():
        found = []
        for path in paths:
            found.append(run({**request, "model": str(path)}))
            advance(1)
        divergence = torch.zeros(len(paths), len(windows), predicted, dtype=torch.float64)
        same, covered = torch.zeros_like(divergence), torch.zeros_like(divergence)
        for i, window in enumerate(windows):
            # One window at a time: the logits of a batch would take more memory than anything else.
            log_p = _predict(model, window, predicted)
            check_logits(log_p, model, window[None], "the checkpoint", source.label)
            for n, of_file in enumerate(found):
                for j, top in enumerate(of_file["top"][i]):
                    divergence[n, i, j], covered[n, i, j] = binned_divergence(log_p[j], top)
                    same[n, i, j] = float(top[0][0] == int(log_p[j].argmax()))
            advance(1)
    if not divergence.isfinite().all():
        raise VerificationError("llama.cpp's predictions are NaN or inf; nothing was written")
    split = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
    agreements = []
    for n, of_file in enumerate(found):
        compared = zip(lines, of_file["lines"], split, strict=True)
        different = tuple(line for line, tokens, expected in compared if tokens != expected)
        kl, top1 = _measured(source, divergence[n], same[n], conditions)
        equal = len(lines) - len(different)
        agreements.append(Agreement(kl, top1, covered[n].mean().item(), equal, len(lines), different))
    return agreements


def measure_checkpoints(
    load_checkpoint: Callable[[], Any],
    load_export: Callable[[], Any],
    tokenizer: Any,
    settings: AgreementSettings | None = None,
) -> CheckpointAgreement:
    """Compare two checkpoints in transformers, on the same text as GGUF files but over the whole vocabulary.

    Memory holds one model at a time, and the first one's predictions.

    Args:
        load_checkpoint: Loads the checkpoint, in float32.
        load_export: Loads the export, as its readers do.
        tokenizer: Their tokenizer.
        settings: What is compared; the defaults take seconds.

    Raises:
        NotFiniteError: The original's predictions are NaN or inf.
        VerificationError: The export's predictions are NaN or inf.
    """
    source = TextSource(PYDOC)
    model = load_checkpoint()
    settings = _fitting(settings or AgreementSettings(), model.config)
    windows = _windows(source, tokenizer, settings)
    check_tokens(windows, int(model.config.get_text_config().vocab_size), tokenizer, source.label, "the model")
    divergence = torch.zeros(len(windows), settings.predicted, dtype=torch.float64)
    same = torch.zeros_like(divergence)
    with progress_bar("comparing with the checkpoint", 2 * len(windows)) as advance, torch.inference_mode():
        before = []
        for window in windows:
            before.append(_predict(model, window, settings.predicted).float())
            check_logits(before[-1], model, window[None], "the checkpoint", source.label)
            advance(1)
        del model
        model = load_export()
        for i, window in enumerate(windows):
            log_p, log_q = before[i].double(), _predict(model, window, settings.predicted)
            divergence[i] = (log_p.exp() * (log_p - log_q)).sum(-1)
            same[i] = (log_p.argmax(-1) == log_q.argmax(-1)).double()
            advance(1)
    if not divergence.isfinite().all():
        raise VerificationError("the export's predictions are NaN or inf; nothing was written")
    conditions = {
        "runtime": "transformers",
        "length": settings.length,
        "predicted": settings.predicted,
        "fingerprint": source.fingerprint(),
        **_begins_with(tokenizer),
    }
    return CheckpointAgreement(*_measured(source, divergence, same, conditions))


def _predict(model: Any, window: torch.Tensor, predicted: int) -> torch.Tensor:
    """Return the log-probabilities at the end of a window, float64, shape (predicted, vocabulary)."""
    logits: torch.Tensor = model(window[None]).logits[0, -predicted:]
    return logits.double().log_softmax(-1)


def _behind_window(settings: AgreementSettings, config: Any) -> AgreementSettings:
    """Return the settings with windows that reach behind the sliding window, or end in front of one that is ignored.

    Within a sliding window, all layers see the same tokens, and one that is on the wrong layer changes nothing.
    """
    window = sliding_window(config)
    if window is None:
        return settings
    if ignored_window(config.model_type, config) is not None:
        return replace(settings, length=min(settings.length, window))
    length = max(settings.length, window + BEHIND_WINDOW)
    windows = min(settings.windows, max(2, _TOKENS // length))
    documents = settings.documents * -(-windows * length // _TOKENS)
    return replace(settings, length=length, windows=windows, documents=documents)


def _fitting(settings: AgreementSettings, config: Any) -> AgreementSettings:
    """Return the settings with windows that fit the model's context."""
    limit = getattr(config, "max_position_embeddings", None) or settings.length
    length = min(settings.length, limit)
    return replace(settings, length=length, predicted=min(settings.predicted, length))


def _windows(source: TextSource, tokenizer: Any, settings: AgreementSettings) -> torch.Tensor:
    # The first documents hold far more tokens than needed, and tokenizing the whole text takes seconds.
    documents = islice(source.documents(), settings.documents)
    return token_windows(documents, tokenizer, settings.length, settings.windows, seed=0, label=source.label)


def _begins_with(tokenizer: Any) -> dict[str, str]:
    """Return what windows begin with, for the report; llama.cpp gets token ids, and adds nothing to these."""
    name = beginning_name(tokenizer)
    return {} if name is None else {"begins_with": name}


def _measured(
    source: TextSource, divergence: torch.Tensor, same: torch.Tensor, conditions: Mapping[str, Any]
) -> tuple[Measurement, Measurement]:
    kl, top1 = mean_over_windows(divergence), mean_over_windows(same)
    return (
        Measurement("kl_divergence", source.label, kl.value, kl.stderr, kl.windows, conditions),
        Measurement("top1_agreement", source.label, top1.value, top1.stderr, top1.windows, conditions),
    )


def _lines(source: TextSource, count: int) -> list[str]:
    found = list(PROBES[: count // 3])
    for document in source.documents():
        found += [line for line in document.splitlines() if line.strip()]
        if len(found) >= count:
            break
    return found[:count]
