"""The one reader of rows: what a line of a .jsonl file or a row of a Hub data set says.

A row becomes text, or a conversation. What is neither is refused with what is wrong with it; whoever reads the rows
knows which row it is. Python's spelling of a value is never text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import DataError
from .conversations import Conversation, Segment, read_conversation, text_of

_NO_FORM = "is not a row with 'text'; 'messages'; 'prompt' and 'completion'; or 'question', 'choices' and 'answer'"


class NoSuchForm(DataError):
    """A row in none of the forms, or without the column that was asked for."""


@dataclass(frozen=True)
class Row:
    """What one row says.

    Args:
        pieces: Its text, each piece an answer or not; none in a conversation, or where the row is blank.
        conversation: Its conversation, or None.
        place: Where it stands, for messages.
        with_image: The row as it was written, where it has an image beside its text; else None.
    """

    pieces: tuple[Segment, ...] = ()
    conversation: Conversation | None = None
    place: str = "the row"
    with_image: Mapping[str, Any] | None = None

    def text(self) -> str:
        """Return the row as plain text: a conversation is one turn a line, each `role: content`.

        Raises:
            DataError: The text holds half a character, or belongs to an image.
        """
        self._check_alone()
        plain = "".join(text for text, _ in self.pieces) if self.conversation is None else self.conversation.plain()
        return self._whole(plain)

    def segments(self, tokenizer: Any, *, answers: bool) -> list[Segment]:
        """Return the row as pieces to train on, each an answer or not; none where it is blank.

        The assistant's turns, the completion and the right choice are answers.

        Args:
            tokenizer: Its chat template, if it has one, writes a conversation.
            answers: Whether answers have to be told from the rest. If not, what the template writes is one piece.

        Raises:
            DataError: The template refuses the conversation, answers cannot be told from the rest, or the text holds
                half a character, or belongs to an image.
        """
        self._check_alone()
        pieces = self.pieces
        if self.conversation is not None:
            try:
                pieces = tuple(self.conversation.segments(tokenizer, answers=answers))
            except DataError as error:
                raise DataError(f"{self.place} {error}") from None
        return [(self._whole(text), answer) for text, answer in pieces if text.strip()]

    def _check_alone(self) -> None:
        if self.with_image is not None:
            raise DataError(
                f"{self.place} has an image, which only --calibration reads, and only for a vision-language model; "
                "leave the image out to read the text alone"
            )

    def _whole(self, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{self.place} holds \\u{ord(text[error.start]):04x}, which is half of a surrogate pair and no "
                "character; write the whole pair, or the character itself"
            ) from None
        return text


def read_row(row: Any, column: str | None = None, *, place: str = "the row") -> Row:
    """Read a row.

    The first of the forms that has something in it counts: null, an empty text and an empty list are nothing. A row
    with nothing in any form is blank.

    Args:
        row: A row with `text`; `messages`; `prompt` and `completion`; or `question`, `choices` and `answer`. A text
            may be a list of text parts; prompt and completion may be lists of messages.
        column: Read this column instead: a text, or a conversation.
        place: Where it stands, for messages.

    Raises:
        DataError: It has none of the forms, or a value that is not text where text belongs.
    """
    try:
        if not isinstance(row, Mapping):
            raise NoSuchForm(_NO_FORM)
        return replace(_read(row) if column is None else _read_column(row, column), place=place)
    except DataError as error:
        raise type(error)(f"{place} {error}") from None


def row_text(row: Any, column: str | None = None) -> str:
    """Return the plain text of a data set's row.

    Args:
        row: The row, as `read_row` takes it.
        column: Read this column instead.

    Raises:
        DataError: It cannot be read.
    """
    return read_row(row, column).text()


def _read(row: Mapping[str, Any]) -> Row:
    if not _is_nothing(row.get("text")):
        return _one_text(row["text"], "text")
    if not _is_nothing(row.get("messages")):
        return Row(conversation=read_conversation(row["messages"], "messages", row))
    if "prompt" in row and "completion" in row and not _is_nothing(row["prompt"], row["completion"]):
        return _read_pair(row)
    if "question" in row and "choices" in row and "answer" in row and not _is_nothing(row["question"]):
        return _read_question(row)
    if "text" in row or "messages" in row or {"prompt", "completion"} <= row.keys():
        return Row()
    raise NoSuchForm(_NO_FORM)


def _read_column(row: Mapping[str, Any], column: str) -> Row:
    if column not in row:
        raise NoSuchForm(f"has no column {column!r}")
    if _is_nothing(row[column]):
        return Row()
    if _is_messages(row[column]):
        return Row(conversation=read_conversation(row[column], column, row))
    return _one_text(row[column], column)


def _is_nothing(*values: Any) -> bool:
    return all(value is None or (isinstance(value, (str, list, tuple)) and not value) for value in values)


def _is_messages(value: Any) -> bool:
    """Tell a list of messages from a list of text parts: parts have no role."""
    return isinstance(value, (list, tuple)) and any(isinstance(each, Mapping) and "role" in each for each in value)


def _one_text(value: Any, name: str) -> Row:
    return Row(((text_of(value, name), False),))


def _read_pair(row: Mapping[str, Any]) -> Row:
    prompt, completion = row["prompt"], row["completion"]
    spoken = [_is_messages(each) for each in (prompt, completion)]
    if not any(spoken):
        return Row(((text_of(prompt, "prompt"), False), (text_of(completion, "completion"), True)))
    if not all(talks or _is_nothing(each) for talks, each in zip(spoken, (prompt, completion), strict=True)):
        raise DataError("has a list of messages and a text as 'prompt' and 'completion'; write both as one of these")
    together = [*(prompt or ()), *(completion or ())]
    return Row(conversation=read_conversation(together, "prompt' and 'completion", row))


def _read_question(row: Mapping[str, Any]) -> Row:
    choices, answer = row["choices"], row["answer"]
    if not isinstance(choices, (list, tuple)):
        raise DataError("has 'choices' that are no list; write a list of texts")
    # -1 is how data sets without answers say so, and Python's last choice.
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise DataError(
            f"has an 'answer' that is not the index of a choice; write a number from 0 to {len(choices) - 1}"
        )
    chosen = text_of(choices[answer], "choices")
    return Row(((f"Question: {text_of(row['question'], 'question')}\nAnswer:", False), (f" {chosen}", True)))
