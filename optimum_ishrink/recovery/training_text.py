"""Recovery text: packed windows of tokens, and which of them have a label.

Text is taken from files, from the Hub, or from the teacher itself. Documents are joined with the end-of-text token and
cut into windows, so that no token is padding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from ..errors import DataError
from ..text.sources import TextSource, parse_sources, windows_per_source
from .options import RecoveryOptions
from .targets import IGNORED

Segment = tuple[str, bool]
"""A piece of a document, and whether it is an answer."""

HELD_OUT_SHARE = 16
"""One window in sixteen is not trained on, but chooses the best checkpoint."""

HELD_OUT_MOST = 32
"""More windows than this would say little more, and every evaluation runs them all."""


@dataclass(frozen=True)
class RecoveryText:
    """Windows to train on and windows to choose on.

    Args:
        input_ids: Token ids, int64, shape (windows, length). The last `held_out` windows are not trained on.
        labels: The same, with `IGNORED` where no label is wanted.
        held_out: How many windows choose the best checkpoint.
        kinds: For each window the number of the source that it is from, int64, shape (windows,).
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    held_out: int
    kinds: torch.Tensor

    @property
    def trained(self) -> int:
        """How many windows are trained on."""
        return len(self.input_ids) - self.held_out


def row_segments(row: Any, tokenizer: Any) -> list[Segment]:
    """Return a data set's row as pieces, each an answer or not.

    Args:
        row: A row with `text`; `messages`; `prompt` and `completion`; or `question`, `choices` and `answer`. The
            assistant's turns, the completion and the right choice are answers.
        tokenizer: Its chat template, if it has one, writes messages.

    Raises:
        DataError: The chat template cannot write these messages turn by turn.
    """
    if "text" in row:
        return [(str(row["text"]), False)]
    if "messages" in row:
        return _chat_segments(row["messages"], tokenizer)
    if "prompt" in row:
        return [(str(row["prompt"]), False), (str(row["completion"]), True)]
    return [(f"Question: {row['question']}\nAnswer:", False), (f" {row['choices'][row['answer']]}", True)]


def _chat_segments(messages: Sequence[Any], tokenizer: Any) -> list[Segment]:
    if not getattr(tokenizer, "chat_template", None):
        return [
            piece
            for message in messages
            for piece in ((f"{message['role']}:", False), (f" {message['content']}\n", message["role"] == "assistant"))
        ]
    segments: list[Segment] = []
    written = ""
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
            written = _grow(segments, written, prompt, False)
            answered = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
            written = _grow(segments, written, answered, True)
    _grow(segments, written, tokenizer.apply_chat_template(messages, tokenize=False), False)
    return segments


def _grow(segments: list[Segment], written: str, longer: str, answer: bool) -> str:
    """Add what a longer text has beyond the one written so far, and return it."""
    if not longer.startswith(written):
        raise DataError(
            "the chat template rewrites earlier turns, so answers cannot be told from the rest; "
            "give rows with 'prompt' and 'completion'"
        )
    if longer[len(written) :]:
        segments.append((longer[len(written) :], answer))
    return longer


def source_documents(source: TextSource, tokenizer: Any, labels: str) -> Iterator[list[Segment]]:
    """Return a source's documents as pieces.

    Args:
        source: A file or a Hub data set.
        tokenizer: Its chat template writes messages.
        labels: With `answers`, every document has to have one.

    Raises:
        DataError: Labels are requested of text that has none.
    """
    plain = source.path is not None and source.path.suffix == ".txt"
    if plain or source.text == "pydoc":
        if labels == "answers":
            raise DataError(f"{source.label} is plain text without answers to take labels from; {_NO_LABELS}")
        yield from ([(text, False)] for text in source.documents())
        return
    for number, row in enumerate(source.rows(), start=1):
        segments = [segment for segment in row_segments(row, tokenizer) if segment[0].strip()]
        if labels == "answers" and not any(answer for _, answer in segments):
            raise DataError(f"row {number} of {source.label} has no answer to take labels from; {_NO_LABELS}")
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join documents and cut them into windows.

    Args:
        documents: The documents, each as pieces.
        tokenizer: The model's tokenizer. Pieces are tokenised one by one, so that no token is half an answer.
        length: Tokens in a window.
        count: Windows wanted.
        labels: Whether every token has a label, or those of answers alone (with the end-of-text token after them).
        seed: Seed of the documents' order.
        label: Name of the text, for messages.

    Returns:
        Token ids and labels, int64, shape (count, length).

    Raises:
        DataError: There is not enough text.
    """
    texts = list(documents)
    random.Random(seed).shuffle(texts)
    ids: list[int] = []
    answers: list[bool] = []
    for document in texts:
        if len(ids) >= count * length:
            break
        pieces = tokenizer([text for text, _ in document], add_special_tokens=False, verbose=False)["input_ids"]
        for piece, (_, answer) in zip(pieces, document, strict=True):
            ids += piece
            answers += [answer] * len(piece)
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
            answers.append(document[-1][1])
    if len(ids) < count * length:
        raise DataError(
            f"{label} gives {len(ids)} tokens, {len(ids) // length} windows of {length}; {count} were requested: "
            "give more text, or fewer tokens (--recovery-tokens) or shorter windows (--recovery-length)"
        )
    input_ids = torch.tensor(ids[: count * length], dtype=torch.int64).view(count, length)
    if labels == "text":
        return input_ids, input_ids.clone()
    answered = torch.tensor(answers[: count * length]).view(count, length)
    return input_ids, input_ids.masked_fill(~answered, IGNORED)


def recovery_text(options: RecoveryOptions, tokenizer: Any, *, sample: Callable[[int], torch.Tensor]) -> RecoveryText:
    """Mix sources in equal shares into windows, some of them held out.

    Args:
        options: Sources, tokens, length, labels and seed. A source named twice gives twice as much of its text,
            none of it twice. The trained windows are a whole number of steps.
        tokenizer: The model's tokenizer.
        sample: Returns this many windows that the teacher samples.

    Raises:
        DataError: There are too few tokens for one step, a source has too few, or labels are requested of text
            that has none.
    """
    sources, labels = parse_sources(options.recovery_data), options.recovery_labels
    length, step = options.recovery_length, options.recovery_batch_size
    available = options.recovery_tokens // length
    held_out = min(max(available // HELD_OUT_SHARE, 2), HELD_OUT_MOST)
    trained = (available - held_out) // step * step
    if trained < 1:
        raise DataError(
            f"{options.recovery_tokens} tokens are {available} windows of {length}, too few for one step of {step} "
            f"windows and {held_out} held out; give more tokens (--recovery-tokens), or smaller steps or windows"
        )
    count = trained + held_out
    if count < len(sources):
        raise DataError(f"{len(sources)} text sources share {count} windows; give more tokens (--recovery-tokens)")
    found = []
    shares = windows_per_source(sources, count)
    for source, share in shares:
        if source.is_self:
            if labels == "answers":
                raise DataError(f"text that the model samples itself has no answers to take labels from; {_NO_LABELS}")
            windows = sample(share)
            found.append((windows, windows.clone()))
        else:
            documents = islice(source_documents(source, tokenizer, labels), 1_000_000)
            found.append(
                pack(documents, tokenizer, length, share, labels=labels, seed=options.seed, label=source.label)
            )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed))
    kinds = torch.arange(len(shares)).repeat_interleave(torch.tensor([share for _, share in shares]))
    return RecoveryText(
        torch.cat([ids for ids, _ in found])[order],
        torch.cat([marks for _, marks in found])[order],
        held_out,
        kinds[order],
    )


class TrainingWindows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The windows of all epochs in the order they are trained on, each epoch in a different order.

    The order is fixed from the start: where a run stopped is then a number of steps and nothing else.

    Args:
        text: The recovery text.
        epochs: Passes over it.
        seed: Seed of the orders.
    """

    def __init__(self, text: RecoveryText, epochs: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.text = text
        self.order = torch.cat([torch.randperm(text.trained, generator=generator) for _ in range(epochs)])

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        window = self.order[index]
        return {"input_ids": self.text.input_ids[window], "labels": self.text.labels[window], "window": window}
