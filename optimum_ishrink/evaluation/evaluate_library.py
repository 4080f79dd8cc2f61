"""Perplexity, divergence and latency as `evaluate.Measurement` classes, for your own scripts. Nothing is downloaded.

    from optimum_ishrink.evaluation.evaluate_library import Perplexity

    Perplexity().compute(model=model, tokenizer=tokenizer, data=texts)

They take loaded models, or folders and Hub ids; results are plain dicts that `evaluate.save` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import evaluate

from ..checkpoint.source import open_source
from ..core.device import resolve_device, resolve_dtype
from ..core.limits import check_lengths, check_tokens
from ..errors import DataError, RequestError
from ..report.measurement import Measurement
from ..text.windows import beginning, token_windows
from .latency import LatencySettings, measure_latency
from .passages import TextWindows
from .text_quality import text_measurements

_CITATION = ""  # none besides the package


class _TextMeasurement(evaluate.Measurement):  # type: ignore[misc]
    """Base of the measurements on text: `data` is a list of documents, cut into windows of equal length."""

    def __init__(self, config_name: str | None = None, keep_in_memory: bool | None = None, **kwargs: Any) -> None:
        # In memory there is no file to clean up, but several processes share data through files.
        in_memory = kwargs.get("num_process", 1) == 1 if keep_in_memory is None else keep_in_memory
        super().__init__(config_name, in_memory, **kwargs)

    def _info(self) -> evaluate.MeasurementInfo:
        return evaluate.MeasurementInfo(
            description=self.__doc__ or "",
            citation=_CITATION,
            inputs_description=type(self)._compute.__doc__ or "",
            features=datasets.Features({"data": datasets.Value("string")}),
        )

    def compute(self, *, data: Sequence[str] | None = None, **kwargs: Any) -> dict[str, Any] | None:
        """Measure documents, and those that `add_batch` has added before.

        Args:
            data: Documents.
            **kwargs: Arguments of the measurement.

        Returns:
            The figures; None on processes other than the first.

        Raises:
            DataError: There is no document, or the text is shorter than one window.
        """
        if isinstance(data, str):
            raise DataError("data is one text; give a list of texts, such as [text]")
        if not data and self.writer is None:
            raise DataError("there is no text: give data=[...], or add some with add_batch")
        found: dict[str, Any] | None = super().compute(**({"data": list(data)} if data else {}), **kwargs)
        return found


class Perplexity(_TextMeasurement):
    """Perplexity: exp of the mean negative log-likelihood of the next token, over windows of equal length."""

    def _compute(self, data: Sequence[str], model: Any, tokenizer: Any = None, length: int = 512) -> dict[str, Any]:
        """Measure a model.

        Args:
            data: Documents.
            model: A loaded causal language model, a folder, or a Hub id.
            tokenizer: Its tokenizer; optional where `model` is a folder or id.
            length: Tokens in a window. The first token of each is context only: the one that the tokenizer begins a
                text with, if it adds one.

        Returns:
            `perplexity`, `perplexity_stderr` (from the spread between windows), `n` (windows), `tokens`. The first two
            are None where the perplexity is too large for a number.
        """
        model, tokenizer = _load(model, tokenizer)
        windows = _windows(data, tokenizer, length, model)
        with _evaluating(model):
            _, found = text_measurements(model, None, windows, "the data", {})
        return {"perplexity": None, "perplexity_stderr": None, **_figures(found, windows)}


class Divergence(_TextMeasurement):
    """KL divergence from a base's next-token distribution to the model's, in nats per token, and top-1 agreement."""

    def _compute(
        self, data: Sequence[str], model: Any, base: Any, tokenizer: Any = None, length: int = 512
    ) -> dict[str, Any]:
        """Compare a model with its base.

        Args:
            data: Documents.
            model: A loaded causal language model, a folder, or a Hub id.
            base: The model to compare with, of the same kinds; it has the same tokenizer.
            tokenizer: Their tokenizer; optional where `model` is a folder or id.
            length: Tokens in a window. The first token of each is context only: the one that the tokenizer begins a
                text with, if it adds one.

        Returns:
            `kl_divergence`, `top1_agreement`, `perplexity` and `base_perplexity`, each with `..._stderr`; `n`
            (windows) and `tokens`.
        """
        model, tokenizer = _load(model, tokenizer)
        base, _ = _load(base, tokenizer)
        sizes = [each.get_input_embeddings().num_embeddings for each in (base, model)]
        if sizes[0] != sizes[1]:
            raise DataError(
                f"the models do not share a vocabulary ({sizes[0]} and {sizes[1]} tokens), so their predictions "
                "cannot be compared here; 'ishrink evaluate --base' compares a model with a base of more tokens"
            )
        windows = _windows(data, tokenizer, length, model, base)
        with _evaluating(model, base):
            before, found = text_measurements(model, base, windows, "the data", {})
        missing = {"perplexity": None, "perplexity_stderr": None}
        of_base = {**missing, **_figures(before, windows)}
        named = {f"base_{name}": value for name, value in of_base.items() if name.startswith("perplexity")}
        return {**missing, **_figures(found, windows), **named}


class Latency(evaluate.Measurement):  # type: ignore[misc]
    """Time to first token, prefill and decode speed; with a base, both are timed in turn in one session."""

    def _info(self) -> evaluate.MeasurementInfo:
        return evaluate.MeasurementInfo(
            description=self.__doc__ or "",
            citation=_CITATION,
            inputs_description=self.compute.__doc__ or "",
            features=datasets.Features({}),
        )

    def compute(
        self, *, model: Any, base: Any = None, prompt_length: int = 64, new_tokens: int = 6, rounds: int = 13
    ) -> dict[str, Any]:
        """Time a model, and its base if given.

        Args:
            model: A loaded causal language model, a folder, or a Hub id.
            base: The model to compare with, or None.
            prompt_length: Tokens in the prompt, which are drawn at random.
            new_tokens: Tokens decoded after the prompt.
            rounds: Measured rounds.

        Returns:
            Medians by metric, each with `..._quartiles`; with a base also `base_...`, `..._ratio`, the median over
            rounds of the model's figure over the base's, and `..._verdict`, whether that is a difference
            (docs/explanation/statistics.md); `n` (rounds).
        """
        models = {} if base is None else {"base": _load(base, None, need_tokenizer=False)[0]}
        models["model"] = _load(model, None, need_tokenizer=False)[0]
        settings = LatencySettings(prompt_length=prompt_length, new_tokens=new_tokens, rounds=rounds)
        with _evaluating(*models.values()):
            found = measure_latency(models, settings)
        result: dict[str, Any] = {}
        for name, measurements in found.items():
            prefix = "" if name == "model" else f"{name}_"
            for each in measurements:
                result[f"{prefix}{each.metric}"] = each.value
                result[f"{prefix}{each.metric}_quartiles"] = list(each.quartiles or ())
                result["n"] = each.n
        for each in found["model"] if base is not None else ():
            versus = each.versus_base
            assert versus is not None, "the models took turns"
            result[f"{each.metric}_ratio"], result[f"{each.metric}_verdict"] = versus.ratio, versus.verdict
        return result


def _windows(data: Sequence[str], tokenizer: Any, length: int, *models: Any) -> TextWindows:
    """Return the data as windows, once it is known that the models can read them."""
    for model in models:
        check_lengths(model.config, "the model", length=length)
    windows = token_windows(data, tokenizer, length, None, seed=None, label="the data")
    for model in models:
        rows = model.get_input_embeddings().weight.shape[0]
        check_tokens(windows, rows, tokenizer, "the data", "the model")
    return TextWindows(windows, context=max(1, len(beginning(tokenizer))))


def _load(model: Any, tokenizer: Any, *, need_tokenizer: bool = True) -> tuple[Any, Any]:
    """Return a model and its tokenizer; folders and Hub ids are opened."""
    if isinstance(model, (str, Path)):
        source = open_source(str(model))
        device = resolve_device("auto")
        loaded = source.load_model(resolve_dtype("auto", device), device)
        return loaded, tokenizer if tokenizer is not None or not need_tokenizer else source.load_tokenizer()
    if tokenizer is None and need_tokenizer:
        raise RequestError("a loaded model does not bring its tokenizer: give tokenizer=...")
    return model, tokenizer


@contextmanager
def _evaluating(*models: Any) -> Iterator[None]:
    """Switch dropout off for as long as models are measured."""
    training = [model for model in models if model.training]
    for model in training:
        model.eval()
    try:
        yield
    finally:
        for model in training:
            model.train()


def _figures(found: Sequence[Measurement], windows: TextWindows) -> dict[str, Any]:
    """Return measurements of one text as a flat dict."""
    result: dict[str, Any] = {}
    for each in found:
        result |= {each.metric: each.value, f"{each.metric}_stderr": each.stderr}
    return {**result, "n": len(windows), "tokens": len(windows) * (windows.ids.shape[1] - windows.context)}
