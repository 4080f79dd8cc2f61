"""The inputs of an evaluation: the windows of its texts, and its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.session import Session
from ..checkpoint.source import Source
from ..core.limits import max_positions
from ..errors import DataError
from ..text.sources import PYDOC, TextSource, label_sources, parse_sources
from ..text.token_map import TokenMap, map_tokens
from .harness import open_tasks
from .options import QualityOptions
from .passages import TextWindows, text_windows
from .shared_windows import SharedWindow, shared_windows

Reader = tuple[Source, Any]
"""A model, and the tokenizer that it reads text with."""

SharedTexts = Mapping[str, tuple[SharedWindow, ...] | None]
"""The windows of texts by their labels; None for a text that two tokenizers do not stand for alike."""


def evaluation_sources(options: QualityOptions) -> tuple[TextSource, ...]:
    """Return the texts to measure on.

    Args:
        options: Which texts; Python's reference topics by default.
    """
    return parse_sources(options.eval_text) if options.eval_text else (TextSource(PYDOC),)


def check_evaluation_texts(options: QualityOptions, others: Mapping[str, Sequence[TextSource]]) -> None:
    """Check that the evaluation texts exist, and that nothing else reads them.

    Args:
        options: Which texts.
        others: Texts that the run reads for other purposes, by purpose, such as `calibration`.

    Raises:
        DataError: A text is missing, is sampled from the model, or is read for another purpose as well.
    """
    evaluation = evaluation_sources(options)
    for source in evaluation:
        source.check()
    if any(source.is_self for source in evaluation):
        raise DataError("eval_text cannot be 'self': text that the model samples itself is not independent of it")
    for purpose, texts in others.items():
        read = {_place(source) for source in texts}
        for source in evaluation:
            if _place(source) in read:
                raise DataError(
                    f"{source.text} is given for {purpose} and for evaluation; measure on text that the model has "
                    "not seen"
                )


def _place(source: TextSource) -> object:
    return source.path.resolve() if source.path else source.text


class EvaluationInputs:
    """The texts and tasks of one evaluation. Each is read once, when it is first needed.

    Args:
        options: Which texts and tasks.
        session: The run; windows are in the tokens of its source.
    """

    def __init__(self, options: QualityOptions, session: Session) -> None:
        self.options = options
        self.sources = evaluation_sources(options)
        self._session = session
        self._windows: Mapping[str, TextWindows] | None = None
        self._maps: dict[tuple[Path, Path], TokenMap | None] = {}
        self._shared: dict[tuple[Path, Path], SharedTexts] = {}
        self._tasks: Any = None

    def windows(self) -> Mapping[str, TextWindows]:
        """Return the windows of each text, by its label.

        Raises:
            DataError: A text is too short.
        """
        if self._windows is None:
            self._windows = self._read()
        return self._windows

    def _read(self) -> dict[str, TextWindows]:
        options = self.options
        found = {
            label: text_windows(
                source.documents(),
                self._session.tokenizer,
                options.eval_length,
                options.eval_samples,
                seed=options.seed,
                label=label,
            )
            for source, label in zip(self.sources, self.labels, strict=True)
        }
        for label, windows in found.items():
            self._session.check_tokens(windows.ids, label)
        return found

    @property
    def labels(self) -> list[str]:
        """The name of each text."""
        return list(label_sources(self.sources))

    def token_map(self, base: Reader, model: Reader) -> TokenMap | None:
        """Return how a base's tokens correspond to those of a model whose tokenizer is a part of the base's.

        Args:
            base: The base and its tokenizer.
            model: The model and its tokenizer.

        Returns:
            None where the model has another tokenizer.
        """
        key = (base[0].folder, model[0].folder)
        if key not in self._maps:
            rows = (source.config.vocab_size for source, _ in (base, model))
            self._maps[key] = map_tokens(base[1], model[1], *rows)
        return self._maps[key]

    def shared_windows(self, base: Reader, model: Reader, tokens: TokenMap) -> SharedTexts:
        """Return the windows of each text for a base and a model with fewer tokens, by the text's label.

        Args:
            base: The base and its tokenizer.
            model: The model and its tokenizer.
            tokens: How the base's tokens correspond to the model's.

        Returns:
            The windows; None for a text that the two tokenizers do not stand for alike.

        Raises:
            DataError: A text is too short.
        """
        key = (base[0].folder, model[0].folder)
        if key not in self._shared:
            options = self.options
            self._shared[key] = {
                label: shared_windows(
                    source.documents(),
                    base[1],
                    model[1],
                    tokens,
                    options.eval_length,
                    options.eval_samples,
                    seed=options.seed,
                    label=label,
                    limits=(max_positions(base[0].config), max_positions(model[0].config)),
                )
                for source, label in zip(self.sources, self.labels, strict=True)
            }
        return self._shared[key]

    def task_manager(self) -> Any:
        """Return lm-eval's task manager, after checking that it knows the requested tasks.

        Raises:
            DataError: A task or the folder of task files does not exist.
        """
        if self._tasks is None:
            self._tasks = open_tasks(self.options.tasks, self.options.include_path, self.options.num_fewshot)
        return self._tasks

    def check(self) -> None:
        """Read the texts and find the tasks now, so that errors appear before long work.

        Raises:
            DataError: A text is too short, or a task does not exist.
        """
        self.windows()
        if self.options.tasks:
            self.task_manager()
