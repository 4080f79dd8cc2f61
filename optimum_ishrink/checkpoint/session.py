"""One run over one model: what its stages share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from ..configuration import IShrinkConfig
from ..core.device import resolve_device, resolve_dtype
from ..core.processes import connect, from_main_process, is_main_process
from ..errors import DataError
from ..evaluation.harness import open_tasks
from ..evaluation.passages import TextWindows, text_windows
from ..text.calibration import calibration_windows
from ..text.sources import PYDOC, TextSource, label_sources, parse_sources
from .source import Source


class Session:
    """One run over one source: the loaded model and tokenizer are shared between the stages that need them.

    Args:
        source: The model.
        config: What was asked for.
        model: The source's model, when an earlier run has loaded it already with the same dtype and device.

    Raises:
        RequestError: The device or dtype cannot be had.
    """

    def __init__(self, source: Source, config: IShrinkConfig, model: Any = None) -> None:
        self.source = source
        self.config = config
        self.device = connect(resolve_device(config.device))
        self.dtype = resolve_dtype(config.dtype, self.device)
        self._model = model
        self._tokenizer: Any = None

    @property
    def base_name(self) -> str:
        """What cards and reports call the source."""
        return self.config.base_model or self.source.display_name

    @property
    def model(self) -> Any:
        """The base model, loaded when it is first needed."""
        if self._model is None:
            self._model = self.source.load_model(self.dtype, self.device)
        return self._model

    @cached_property
    def calibration_windows(self) -> torch.Tensor:
        """The windows to calibrate on, drawn when they are first needed."""
        config = self.config
        if not is_main_process():  # one process draws for all
            return from_main_process(None)  # type: ignore[no-any-return]
        drawn = calibration_windows(
            parse_sources(config.calibration),
            self.model,
            self.tokenizer,
            samples=config.calibration_samples,
            length=config.calibration_length,
            seed=config.seed,
        )
        return from_main_process(drawn)  # type: ignore[no-any-return]

    @property
    def importance_windows(self) -> torch.Tensor:
        """Those of them that scores are taken on: the first, of a random order."""
        return self.calibration_windows[: self.config.importance_samples]

    @cached_property
    def task_manager(self) -> Any:
        """lm-eval's task manager, which knows the tasks that were asked for."""
        config = self.config
        return open_tasks(config.tasks, config.include_path, config.num_fewshot)

    @cached_property
    def evaluation_windows(self) -> dict[str, TextWindows]:
        """The windows of each text to measure on, by its label."""
        config = self.config
        sources = evaluation_sources(config)
        return {
            label: text_windows(
                source.documents(),
                self.tokenizer,
                config.eval_length,
                config.eval_samples,
                seed=config.seed,
                label=label,
            )
            for source, label in zip(sources, label_sources(sources), strict=True)
        }

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, loaded when it is first needed."""
        if self._tokenizer is None:
            self._tokenizer = self.source.load_tokenizer()
        return self._tokenizer


def evaluation_sources(config: IShrinkConfig) -> tuple[TextSource, ...]:
    """Return the texts to measure on."""
    return parse_sources(config.eval_text) if config.eval_text else (TextSource(PYDOC),)


def check_request(config: IShrinkConfig, *, measure: bool = True) -> None:
    """Check what can be checked before any long work: the texts exist, and none is both calibrated and measured on.

    Raises:
        DataError: A text is missing, or would be both.
    """
    read = {"calibration": parse_sources(config.calibration)}
    if config.recovery != "none":
        read["recovery"] = config.recovery_settings.data
    evaluation = evaluation_sources(config) if measure and config.evaluate else ()
    for source in (*(text for texts in read.values() for text in texts), *evaluation):
        if source.path is not None or source.is_folder:
            next(iter(source.documents()))
    check_independent(evaluation)
    for purpose, texts in read.items():
        resolved = {source.path.resolve() if source.path else source.text for source in texts}
        for source in evaluation:
            if (source.path.resolve() if source.path else source.text) in resolved:
                raise DataError(
                    f"{source.text} is given for {purpose} and for evaluation; measure on text it has not seen"
                )
    if measure and config.tasks:
        open_tasks(config.tasks, config.include_path, config.num_fewshot)


def check_independent(evaluation: Sequence[TextSource]) -> None:
    """Check that no text to measure on is the model's own.

    Raises:
        DataError: One is.
    """
    if any(source.is_self for source in evaluation):
        raise DataError("eval_text cannot be 'self': what the model says itself is no independent text")


def all_texts(config: IShrinkConfig) -> tuple[TextSource, ...]:
    """Return every text that a run reads."""
    return (*parse_sources(config.calibration), *parse_sources(config.recovery_data), *evaluation_sources(config))
