"""Calibration windows of a run, mixed from its text sources in equal shares, and held-out windows of these sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol

import torch

from ..core.processes import from_main_process, is_main_process
from ..errors import DataError
from .image_features import images_in
from .image_rows import images_digest
from .image_windows import image_windows
from .options import CalibrationOptions
from .sampling import sample_text
from .sources import TextSource, equal_shares, parse_sources, source_identity, windows_per_source
from .windows import beginning_name, token_windows


class ModelAndTokenizer(Protocol):
    """A run's model and tokenizer, each loaded when it is first needed."""

    @property
    def model(self) -> Any:
        """The model, for text that is sampled from it."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""

    @property
    def processor(self) -> Any:
        """Its processor of images and text, for rows with images."""

    def check_tokens(self, ids: torch.Tensor, label: str) -> None:
        """Check that the model has an embedding for every token."""


class Calibration:
    """The calibration text of one run. Its windows are drawn when they are first needed, by the main process.

    Args:
        options: Which text, and how much of it.
        loaded: The run's model and tokenizer.
        whole: The same text in the tokens of the model whose vocabulary was cut: it samples what is to be sampled from
            the model itself. None where no vocabulary was cut.
    """

    def __init__(
        self, options: CalibrationOptions, loaded: ModelAndTokenizer, whole: Calibration | None = None
    ) -> None:
        self.options = options
        self.sources = parse_sources(options.calibration)
        self._loaded = loaded
        self._whole = whole

    @cached_property
    def windows(self) -> torch.Tensor:
        """Token ids, int64, shape (`calibration_samples`, `calibration_length`), in random order.

        Negative ones are image features: number n has the id -1 - n.
        """
        return self._drawn[0]

    @property
    def features(self) -> torch.Tensor | None:
        """The features of images, shape (features, hidden); None where no source has images."""
        return self._drawn[1]

    @cached_property
    def has_images(self) -> bool:
        """Whether a source has images."""
        return any(source.has_images for source in self.sources)

    @cached_property
    def images_digest(self) -> list[str]:
        """A hash of the images of each source that has any."""
        return [images_digest(source.image_rows()) for source in self.sources if source.has_images]

    @contextmanager
    def shown_to(self, model: Any) -> Iterator[None]:
        """Let a model read the windows, and the images in them.

        Args:
            model: The model.
        """
        with images_in(model, self.features if self.has_images else None):
            yield

    @cached_property
    def _drawn(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not is_main_process():
            return from_main_process(None)  # type: ignore[no-any-return]
        features: list[torch.Tensor] = []

        def with_images(source: TextSource, share: int) -> torch.Tensor:
            found = image_windows(
                source,
                self._loaded.model,
                self._loaded.processor,
                length=self.options.calibration_length,
                count=share,
                seed=self.options.seed,
                first=sum(map(len, features)),
            )
            features.append(found.features)
            return found.ids

        drawn = calibration_windows(
            self.sources,
            self._loaded.model,
            self._loaded.tokenizer,
            samples=self.options.calibration_samples,
            length=self.options.calibration_length,
            seed=self.options.seed,
            sampled=self.sampled_documents if self._whole is not None else None,
            with_images=with_images,
        )
        self._loaded.check_tokens(drawn.clamp(min=0), ", ".join(source.label for source in self.sources))
        return from_main_process((drawn, torch.cat(features) if features else None))  # type: ignore[no-any-return]

    @cached_property
    def sampled(self) -> torch.Tensor | None:
        """The windows that the whole model samples itself, shape (windows, length); None where none are wanted."""
        if self._whole is not None:
            return self._whole.sampled
        own = [number for number, (text, _) in enumerate(self._shares) if text.is_self]
        return self.windows[self.kinds == own[0]] if own else None

    @property
    def _shares(self) -> list[tuple[TextSource, int]]:
        return windows_per_source(self.sources, self.options.calibration_samples)

    @cached_property
    def sampled_documents(self) -> list[str]:
        """What the whole model samples itself, as text."""
        if self._whole is not None:
            return self._whole.sampled_documents
        windows = [] if self.sampled is None else self.sampled.tolist()
        # Marks of turns and documents stay in the text: any part of the vocabulary has them as tokens.
        return [
            self._loaded.tokenizer.decode(window, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for window in windows
        ]

    @cached_property
    def begins_with(self) -> str | None:
        """The tokens that every window begins with, as they are spelled; None where the tokenizer adds none."""
        return beginning_name(self._loaded.tokenizer)

    @property
    def kinds(self) -> torch.Tensor:
        """The number of each window's source, int64, shape (`calibration_samples`,)."""
        return window_kinds(self.sources, len(self.windows), seed=self.options.seed)


def calibration_windows(
    sources: Sequence[TextSource],
    model: Any,
    tokenizer: Any,
    *,
    samples: int,
    length: int,
    seed: int,
    sampled: Sequence[str] | None = None,
    with_images: Callable[[TextSource, int], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return calibration windows, mixed from the sources in equal shares.

    Args:
        sources: Where the text comes from.
        model: The model, for `self`.
        tokenizer: Its tokenizer.
        samples: Windows in all.
        length: Tokens in a window.
        seed: Seed of the draw.
        sampled: Documents that stand for `self`; None to sample them from the model.
        with_images: Returns so many windows of a source whose rows have images; None where none has.

    Returns:
        Token ids, int64, shape (samples, length).

    Raises:
        DataError: A source cannot be read or is too short, or there are more sources than windows.
    """
    if samples < len(sources):
        raise DataError(f"{len(sources)} text sources need at least as many calibration samples, not {samples}")
    parts = []
    for source, share in windows_per_source(sources, samples):
        if source.is_self and sampled is None:
            parts.append(sample_text(model, tokenizer, length, share, seed=seed).input_ids)
        elif with_images is not None and source.has_images:
            parts.append(with_images(source, share))
        else:
            documents = sampled if source.is_self and sampled is not None else source.documents()
            parts.append(token_windows(documents, tokenizer, length, share, seed=seed, label=source.label))
    return torch.cat(parts)[_order(samples, seed)]


def window_kinds(sources: Sequence[TextSource], samples: int, *, seed: int) -> torch.Tensor:
    """Return the source of each window of `calibration_windows`.

    Args:
        sources: Where the text comes from.
        samples: Windows in all.
        seed: Seed of the draw.

    Returns:
        Numbers of the sources, int64, shape (samples,). A source that is named twice counts once.
    """
    counts = torch.tensor([share for _, share in windows_per_source(sources, samples)])
    return torch.arange(len(counts)).repeat_interleave(counts)[_order(samples, seed)]


def _order(samples: int, seed: int) -> torch.Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))


_HELD_OUT_SEED = 1_000_003
"""Added to the seed for held-out text sampled from the model; far from any seed that a user would choose."""


def held_out_windows(
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
    """Return windows that are held out from calibration, mixed from the sources in equal shares.

    Text that calibration also reads is drawn in the same order, and windows are taken after the tokens that
    calibration uses, so that no token is in both. Files are the same if their contents are, whatever their names.
    Text of `self` is sampled with another seed.

    Args:
        sources: Where the text comes from; one that is named twice counts once.
        model: The model, for `self`.
        tokenizer: Its tokenizer.
        samples: Windows in all.
        length: Tokens in a window.
        seed: Seed of the calibration's draw.
        calibrated: The sources of the calibration.
        calibration_samples: Calibration windows in all.
        calibration_length: Tokens in a calibration window.

    Returns:
        Token ids, int64, shape (samples, length).

    Raises:
        DataError: A source cannot be read or is too short, or there are more sources than windows.
    """
    calibrating = windows_per_source(calibrated, calibration_samples)
    taken = {source_identity(source): share * calibration_length for source, share in calibrating}
    unique = {source_identity(source): source for source in sources}
    if samples < len(unique):
        raise DataError(f"{len(unique)} text sources need at least as many samples to measure on, not {samples}")
    parts = []
    for (name, source), share in zip(unique.items(), equal_shares(samples, len(unique)), strict=True):
        if source.is_self:
            parts.append(sample_text(model, tokenizer, length, share, seed=seed + _HELD_OUT_SEED).input_ids)
        else:
            skip = taken.get(name, 0)
            documents = source.documents()
            parts.append(token_windows(documents, tokenizer, length, share, seed=seed, label=source.label, skip=skip))
    return torch.cat(parts)
