"""A model to be evaluated, with its cached results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from ..checkpoint.fingerprint import model_fingerprint
from ..checkpoint.session import Session
from ..checkpoint.source import Source
from ..core.cache import cache_folder
from ..core.progress import note
from .environment import environment
from .harness import language_model
from .options import QualityOptions
from .result_cache import ResultCache, result_folder


class EvaluatedModel:
    """A model to be evaluated. It is loaded only when a result is not cached.

    Args:
        source: Where its files are.
        session: The run, which knows dtype and device.
        options: Batch size, seed, and whether results are cached.
        role: Its name in messages: `base` or `model`.
    """

    def __init__(self, source: Source, session: Session, options: QualityOptions, role: str) -> None:
        self.source = source
        self.session = session
        self.options = options
        self.role = role

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.source.display_name

    @property
    def model(self) -> Any:
        """The loaded model; the run's source is loaded once for all stages, and the run may let go of it."""
        return self.session.model if self.source is self.session.source else self._own

    @cached_property
    def _own(self) -> Any:
        return self.session.load(self.source)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.source.load_tokenizer()

    @cached_property
    def language_model(self) -> Any:
        """The model, wrapped for lm-eval."""
        return language_model(
            self.model, self.tokenizer, self.options.batch_windows, grows=self.options.batch_size is None
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of its files."""
        return model_fingerprint(self.source)

    @cached_property
    def _cache(self) -> ResultCache:
        cached = self.options.result_cache
        return ResultCache(result_folder(cache_folder(), self.fingerprint) if cached else None)

    @cached_property
    def _conditions(self) -> dict[str, Any]:
        """What every result depends on besides the model and its inputs."""
        found = environment(self.session.device, self.session.dtype)
        names = ("device", "accelerator", "cpu", "dtype", "versions")
        return {**{name: getattr(found, name) for name in names}, "batch_size": self.options.batch_windows}

    def cached(self, key: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """Return a result as plain values: the cached one, or that of `measure`, which is then cached.

        Args:
            key: What the result depends on besides this model; `kind` and `name` say what it is.
            measure: Function that measures it.
        """
        if not self.options.result_cache:
            return measure()
        whole = {**key, **self._conditions}
        found = self._cache.read(whole)
        if found is not None:
            note(f"{key['name']} ({self.role}): read from the cache ({self._cache.folder})")
            return found
        result = measure()
        self._cache.write(whole, result)
        return result
