"""One run over one model: the device, the dtype, and the loaded model and tokenizer that its stages share."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..architectures.model_class import parse_config
from ..core.device import resolve_device, resolve_dtype
from ..core.limits import check_tokens
from ..core.paging import is_paged
from ..core.processes import connect
from ..core.spool import Spool
from ..errors import RequestError
from ..options.run import RunOptions
from .loading import load_processor
from .offload_choice import SAMPLES_ITSELF, chooses_offload
from .offloaded import offloaded_model
from .source import Source


class Session:
    """One run over one source. Model and tokenizer are loaded once, when they are first needed.

    Args:
        source: The model.
        options: Device, dtype, seed and batch size.
        may_offload: Whether this run can read a model from disk layer by layer.

    Raises:
        RequestError: The device or dtype is not available, or layers are to come from disk where they cannot.
    """

    def __init__(self, source: Source, options: RunOptions, *, may_offload: bool = False) -> None:
        self.source = source
        self.options = options
        self.device = connect(resolve_device(options.device))
        self.dtype = resolve_dtype(options.dtype, self.device)
        self.loaded: Any = None
        self.may_offload = may_offload
        if not may_offload and getattr(options, "offload", "auto") == "always":
            raise RequestError(
                "offload='always' is for shrink, plan, analyze and evaluate; this run loads the model whole: leave "
                "offload out"
            )
        self.needs_whole: str | None = SAMPLES_ITSELF if "self" in getattr(options, "calibration", ()) else None
        """Why the run needs the whole model in memory; None where it does not."""
        self.spool_folder: Path | None = None
        """Where hidden states of models on disk are kept; None for a temporary folder."""

    @cached_property
    def offloads(self) -> bool:
        """Whether models are read from disk layer by layer.

        Raises:
            RequestError: That was asked for, and cannot be.
        """
        if self.loaded is not None:
            return is_paged(self.loaded)
        return self.may_offload and chooses_offload(
            self.source, self.dtype, self.device, self.options, self.needs_whole
        )

    @cached_property
    def spool(self) -> Spool:
        """Where hidden states of models on disk are kept."""
        place = getattr(self.options, "offload_folder", None)
        return Spool(self.spool_folder, None if place is None else Path(place).expanduser())

    def share(self, other: Session | None) -> None:
        """Take over the loaded model of another session of this source, unless its layers come from disk.

        Args:
            other: The session; None for none.
        """
        asked = getattr(self.options, "offload", "auto")
        if other is not None and asked != "always" and (other.dtype, other.device) == (self.dtype, self.device):
            self.loaded = None if is_paged(other.loaded) else other.loaded

    @property
    def base_name(self) -> str:
        """The source's name in cards and reports."""
        return self.options.base_model or self.source.display_name

    @property
    def model(self) -> Any:
        """The source's model."""
        if self.loaded is None:
            self.loaded = self.load(self.source)
        return self.loaded

    def load(self, source: Source) -> Any:
        """Load a model for this run: into memory, or so that its layers are read from disk one by one.

        Args:
            source: The model.
        """
        if not self.offloads:
            return source.load_model(self.dtype, self.device)
        config = parse_config(source.raw_config)
        return offloaded_model(config, source.binding, source.tensors, self.dtype, self.spool)

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
