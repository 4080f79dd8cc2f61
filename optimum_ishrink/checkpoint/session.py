"""One run over one model: the device, the dtype, and the loaded model and tokenizer that its stages share."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from ..core.device import resolve_device, resolve_dtype
from ..core.limits import check_tokens
from ..core.processes import connect
from ..options.run import RunOptions
from .loading import load_processor
from .source import Source


class Session:
    """One run over one source. Model and tokenizer are loaded once, when they are first needed.

    Args:
        source: The model.
        options: Device, dtype, seed and batch size.

    Raises:
        RequestError: The device or dtype is not available.
    """

    def __init__(self, source: Source, options: RunOptions) -> None:
        self.source = source
        self.options = options
        self.device = connect(resolve_device(options.device))
        self.dtype = resolve_dtype(options.dtype, self.device)
        self.loaded: Any = None

    @property
    def base_name(self) -> str:
        """The source's name in cards and reports."""
        return self.options.base_model or self.source.display_name

    @property
    def model(self) -> Any:
        """The source's model."""
        if self.loaded is None:
            self.loaded = self.source.load_model(self.dtype, self.device)
        return self.loaded

    @cached_property
    def tokenizer(self) -> Any:
        """The source's tokenizer."""
        return self.source.load_tokenizer()

    @cached_property
    def processor(self) -> Any:
        """The source's processor of images and text."""
        return load_processor(self.source.folder)

    def check_tokens(self, ids: torch.Tensor, label: str) -> None:
        """Check that the model has an embedding for every token of a text.

        Args:
            ids: Token ids, from the source's tokenizer.
            label: Name of the text.

        Raises:
            DataError: It has none for some token; the message names it.
        """
        check_tokens(ids, self.source.config.vocab_size, self.tokenizer, label, self.source.display_name)
