"""Recovery text: packed windows of tokens, and which of them have a label.

Text is taken from files, from the Hub, or from the teacher itself. Documents are joined with the end-of-text token and
cut into windows, so that no token is padding. Windows begin as those of calibration and evaluation do: with BOS where
the tokenizer begins a text with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import DataError
from ..text.conversations import Segment
from ..text.sources import TextSource, parse_sources, windows_per_source
from ..text.windows import beginning, beginning_name, window_starts
from .options import RecoveryOptions
from .targets import IGNORED
from .teacher_text import BothTokens, TeacherText, TokenPair

HELD_OUT_SHARE = 16
"""One window in sixteen is not trained on, but chooses the best checkpoint."""

HELD_OUT_MOST = 32
"""More windows than this would say little more, and every evaluation runs them all."""


_MOVED = 8
"""How far the start of a window is moved at most, on average, so that it is not within a token of the teacher."""


@dataclass(frozen=True)
class TextPart:
    """The part of a recovery text that one recovery of several trains on.

    Args:
        number: Which part, from 0.
        parts: How many there are.
        folder: Where text that the teacher samples is stored for all of them.
    """

    number: int
    parts: int
    folder: Path


@dataclass(frozen=True)
class RecoveryText:
    """Windows to train on and windows to choose on.

    Args:
        input_ids: Token ids, int64, shape (windows, length). The last `held_out` windows are not trained on.
        labels: The same, with `IGNORED` where no label is wanted.
        held_out: How many windows choose the best checkpoint.
        kinds: For each window the number of the source that it is from, int64, shape (windows,).
        begins_with: The tokens that every window begins with, as they are spelled; None where there are none.
        teacher: The same windows in the teacher's tokens; None where these are the student's.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    held_out: int
    kinds: torch.Tensor
    begins_with: str | None = None
    teacher: TeacherText | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that a training reads of it."""
        own = (self.input_ids, self.labels)
        return own if self.teacher is None else (*own, self.teacher.input_ids, self.teacher.positions)

    @property
    def trained(self) -> int:
        """How many windows are trained on."""
        return len(self.input_ids) - self.held_out

    def part(self, part: TextPart, step: int) -> RecoveryText:
        """Return a part of the windows to train on, with all that are held out: these are the same for all parts.

        Args:
            part: Which part.
            step: Windows in a step; a part is a whole number of steps.
        """
        steps = self.trained // step
        first, last = (number * steps // part.parts * step for number in (part.number, part.number + 1))
        rows = torch.cat([torch.arange(first, last), torch.arange(self.trained, len(self.input_ids))])
        return replace(
            self,
            input_ids=self.input_ids[rows],
            labels=self.labels[rows],
            kinds=self.kinds[rows],
            teacher=None if self.teacher is None else self.teacher[rows],
        )


class Windows(NamedTuple):
    """Windows of one source.

    Args:
        input_ids: Token ids, int64, shape (windows, length).
        labels: The same, with `IGNORED` where no label is wanted.
        teacher: The same text in the teacher's tokens; None where these are the student's.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    teacher: TeacherText | None = None


def source_documents(source: TextSource, tokenizer: Any, labels: str) -> Iterator[list[Segment]]:
    """Return a source's documents as pieces, without blank ones.

    Args:
        source: A file or a Hub data set.
        tokenizer: Its chat template writes messages.
        labels: With `answers`, every document has to have one.

    Raises:
        DataError: Labels are requested of text that has none, or a row cannot be read.
    """
    plain = source.path is not None and source.path.suffix == ".txt"
    if plain or source.text == "pydoc":
        if labels == "answers":
            raise DataError(f"{source.label} is plain text without answers to take labels from; {_NO_LABELS}")
        yield from ([(text, False)] for text in source.documents())
        return
    for row in source.rows():
        segments = row.segments(tokenizer, answers=labels == "answers")
        if segments and labels == "answers" and not any(answer for _, answer in segments):
            raise DataError(f"{row.place} has no answer to take labels from; {_NO_LABELS}")
        if segments:
            yield segments


_NO_LABELS = (
    "give rows with 'messages', 'prompt' and 'completion', or 'question', 'choices' and 'answer', "
    "or use --recovery-labels text"
)


def pack(
    documents: Iterable[Sequence[Segment]],
    tokenizer: Any,
    length: int,
    count: int,
    *,
    labels: str,
    seed: int,
    label: str,
    pair: TokenPair | None = None,
) -> Windows:
    """Join documents and cut them into windows.

    Args:
        documents: The documents, each as pieces.
        tokenizer: The model's tokenizer. Pieces are tokenised one by one, so that no token is half an answer.
        length: Tokens in a window, with those that the tokenizer begins a text with.
        count: Windows wanted.
        labels: Whether every token has a label, or those of answers alone (with the end-of-text token after them).
        seed: Seed of the documents' order.
        label: Name of the text, for messages.
        pair: The tokenizer with that of a teacher who reads other tokens. Windows then start where both have read the
            same text, and the windows of the teacher end with the last such place.

    Returns:
        The windows.

    Raises:
        DataError: There is not enough text.
    """
    texts = list(documents)
    random.Random(seed).shuffle(texts)
    ids: list[int] = []
    answers: list[bool] = []
    both = None if pair is None else BothTokens(pair)
    enough = count * (length if both is None else length + _MOVED)
    for document in texts:
        if len(ids) >= enough:
            break
        pieces = tokenizer([text for text, _ in document], add_special_tokens=False, verbose=False)["input_ids"]
        for piece, (text, answer) in zip(pieces, document, strict=True):
            ids += piece
            answers += [answer] * len(piece)
            if both is not None:
                both.add(text, piece)
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
            answers.append(document[-1][1])
            if both is not None:
                both.add_tokens([tokenizer.eos_token_id])
    begin = beginning(tokenizer)
    remedy = "give more text, or fewer tokens (--recovery-tokens) or shorter windows (--recovery-length)"
    apart = None if both is None else both.starts_apart()
    starts = window_starts(ids, begin, length, count, label=label, apart=apart, remedy=remedy)
    inside = length - len(begin)
    input_ids = torch.tensor([[*begin, *ids[at : at + inside]] for at in starts], dtype=torch.int64)
    # What every window begins with is nothing to learn.
    without = torch.zeros(count, len(begin), dtype=torch.bool)
    kept = without.new_ones(len(ids)) if labels == "text" else torch.tensor(answers)
    labelled = torch.cat([without, torch.stack([kept[at : at + inside] for at in starts])], dim=1)
    teacher = None if both is None else TeacherText.stack([both.window(at, inside, begin) for at in starts])
    return Windows(input_ids, input_ids.masked_fill(~labelled, IGNORED), teacher)


def _counts(options: RecoveryOptions) -> tuple[int, int]:
    """Return how many windows are trained on, a whole number of steps, and how many are held out."""
    length, step = options.recovery_length, options.recovery_batch_size
    available = options.recovery_tokens // length
    held_out = min(max(available // HELD_OUT_SHARE, 2), HELD_OUT_MOST)
    trained = (available - held_out) // step * step
    if trained < 1:
        raise DataError(
            f"{options.recovery_tokens} tokens are {available} windows of {length}, too few for one step of {step} "
            f"windows and {held_out} held out; give more tokens (--recovery-tokens), or smaller steps or windows"
        )
    return trained, held_out


def check_parts(options: RecoveryOptions, parts: int) -> None:
    """Check that a text can be shared by several recoveries.

    Args:
        options: Tokens, length and steps.
        parts: How many recoveries share it.

    Raises:
        DataError: There are too few tokens for one step of each.
    """
    steps = _counts(options)[0] // options.recovery_batch_size
    if steps < parts:
        raise DataError(
            f"{options.recovery_tokens} tokens give {steps} steps, and the schedule recovers {parts} times; give more "
            "tokens (--recovery-tokens), or smaller steps or windows"
        )


def recovery_text(
    options: RecoveryOptions,
    tokenizer: Any,
    *,
    sample: Callable[[int], torch.Tensor],
    pair: TokenPair | None = None,
) -> RecoveryText:
    """Mix sources in equal shares into windows, some of them held out.

    Args:
        options: Sources, tokens, length, labels and seed. A source named twice gives twice as much of its text,
            none of it twice. The trained windows are a whole number of steps.
        tokenizer: The model's tokenizer.
        sample: Returns this many windows that the teacher samples, in its own tokens.
        pair: The tokenizer with that of a teacher who reads other tokens.

    Raises:
        DataError: There are too few tokens for one step, a source has too few, or labels are requested of text
            that has none.
    """
    sources, labels = parse_sources(options.recovery_data), options.recovery_labels
    length = options.recovery_length
    trained, held_out = _counts(options)
    count = trained + held_out
    if count < len(sources):
        raise DataError(f"{len(sources)} text sources share {count} windows; give more tokens (--recovery-tokens)")
    found = []
    shares = windows_per_source(sources, count)
    for source, share in shares:
        if source.is_self:
            if labels == "answers":
                raise DataError(f"text that the model samples itself has no answers to take labels from; {_NO_LABELS}")
            windows, teacher = sample(share), None
            if pair is not None:
                windows, teacher = pair.read_sampled(windows)
            found.append(Windows(windows, windows.clone(), teacher))
        else:
            documents = islice(source_documents(source, tokenizer, labels), 1_000_000)
            how = {"labels": labels, "label": source.label}
            found.append(pack(documents, tokenizer, length, share, seed=options.seed, pair=pair, **how))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed))
    kinds = torch.arange(len(shares)).repeat_interleave(torch.tensor([share for _, share in shares]))
    return RecoveryText(
        torch.cat([windows.input_ids for windows in found])[order],
        torch.cat([windows.labels for windows in found])[order],
        held_out,
        kinds[order],
        beginning_name(tokenizer),
        None if pair is None else TeacherText.cat([windows.teacher for windows in found if windows.teacher])[order],
    )


def training_order(windows: int, epochs: int, seed: int) -> torch.Tensor:
    """Return the windows of all epochs in the order they are trained on, int64, shape (epochs * windows,).

    Args:
        windows: Windows that are trained on.
        epochs: Passes over them, each in a different order.
        seed: Seed of the orders.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randperm(windows, generator=generator) for _ in range(epochs)])


class TrainingWindows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The windows of all epochs in the order they are trained on, each epoch in a different order.

    The order is fixed from the start: where a run stopped is then a number of steps and nothing else.

    Args:
        text: The recovery text.
        epochs: Passes over it.
        seed: Seed of the orders.
        places: Whether a window comes with its `place` in the training, for what replaces some of them.
    """

    def __init__(self, text: RecoveryText, epochs: int, seed: int, *, places: bool = False) -> None:
        self.text, self.places = text, places
        self.order = training_order(text.trained, epochs, seed)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        window = self.order[index]
        found = {"input_ids": self.text.input_ids[window], "labels": self.text.labels[window], "window": window}
        return {**found, "place": torch.tensor(index)} if self.places else found
