"""Training text in the tokens of a teacher that has more of them than the student.

A model with a trimmed vocabulary reads some words in more tokens than its base. Both read the same text here, each in
its own tokens, and what the teacher says after a piece of text is compared with what the student says after the same
piece. Within a token that the student does not have, there is nothing to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from ..errors import DataError, RequestError
from ..text.token_map import TokenMap, map_tokens

APART = -1
"""Stands for the teacher's position where it has not read the same text as the student at any."""


@dataclass(frozen=True)
class TeacherText:
    """Windows in the teacher's tokens.

    Args:
        input_ids: Token ids, int64, shape (windows, teacher's length). Shorter windows are filled up at their end,
            where a causal model's predictions for what is before do not depend on it.
        positions: For each position of the student's windows the teacher's that has read the same text; `APART` where
            there is none. int64, shape (windows, length).
    """

    input_ids: torch.Tensor
    positions: torch.Tensor

    def __getitem__(self, windows: torch.Tensor) -> TeacherText:
        """Return some of the windows, as long as the longest of them."""
        positions = self.positions[windows]
        return TeacherText(self.input_ids[windows, : max(1, int(positions.max()) + 1)], positions)

    @property
    def shared(self) -> torch.Tensor:
        """Whether teacher and student have read the same text, at each of the student's positions. bool."""
        return self.positions != APART

    @classmethod
    def stack(cls, windows: Sequence[tuple[list[int], list[int]]]) -> TeacherText:
        """Return windows of different lengths together.

        Args:
            windows: For each window its tokens, and the teacher's position for each of the student's.
        """
        longest = max([1, *(len(ids) for ids, _ in windows)])
        filled = [[*ids, *[0] * (longest - len(ids))] for ids, _ in windows]
        return cls(torch.tensor(filled, dtype=torch.int64), torch.tensor([positions for _, positions in windows]))

    @classmethod
    def cat(cls, parts: Sequence[TeacherText]) -> TeacherText:
        """Return the windows of several texts together."""
        longest = max(part.input_ids.shape[1] for part in parts)
        filled = [torch.nn.functional.pad(part.input_ids, (0, longest - part.input_ids.shape[1])) for part in parts]
        return cls(torch.cat(filled), torch.cat([part.positions for part in parts]))


@dataclass(frozen=True)
class TokenPair:
    """A student's tokenizer and its teacher's, which has all of the student's tokens.

    Args:
        tokenizer: The student's.
        teacher: The teacher's.
        map: How the teacher's tokens correspond to the student's.
    """

    tokenizer: Any
    teacher: Any
    map: TokenMap

    def in_teacher(self, ids: Sequence[int]) -> list[int]:
        """Return the same tokens by the teacher's numbers."""
        return list(self.teacher.convert_tokens_to_ids(self.tokenizer.convert_ids_to_tokens(list(ids))))

    def shared(self, teacher_ids: Sequence[int], ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return where both have read the same part of a text: positions in the teacher's tokens and in the student's.

        Args:
            teacher_ids: The text in the teacher's tokens.
            ids: The same text in the student's.
        """
        if not (len(ids) and len(teacher_ids)):
            return [], []
        if not self.map.covers_alike(teacher_ids, ids):
            # A token for what is unknown does not say how long the text is that it stands for.
            return [len(teacher_ids) - 1], [len(ids) - 1]
        theirs, ours = self.map.shared(teacher_ids, ids)
        return theirs.tolist(), ours.tolist()

    def read_sampled(
        self, windows: torch.Tensor, by: Literal["teacher", "student"] = "teacher"
    ) -> tuple[torch.Tensor, TeacherText]:
        """Return windows that teacher or student sampled, as both read them.

        What was written is decoded, and its text tokenised by both. Special tokens are not decoded: text around
        them could be lost. A window that has fewer tokens than it had, because it ended within a character, goes on
        with the text of the next.

        Args:
            windows: Token ids of who sampled them, int64, shape (windows, length).
            by: Who that was.

        Returns:
            Token ids of the student, of the same shape, and the windows in the teacher's tokens.

        Raises:
            DataError: No window has a text.
        """
        count, length = windows.shape
        parts = [self._parts(window, by) for window in windows.tolist()]
        found, taught = [], []
        for number in range(count):
            both, at = BothTokens(self), number
            while len(both.ids) < length:
                if at == number + count and not both.ids:
                    raise DataError(f"what the {by} samples is no text; name a text (--recovery-data)")
                for part in parts[at % count]:
                    if isinstance(part, str):
                        both.add(part)
                    else:
                        both.add_tokens([part])
                at += 1
            found.append(both.ids[:length])
            taught.append(both.window(0, length))
        return torch.tensor(found, dtype=torch.int64), TeacherText.stack(taught)

    @cached_property
    def _marks(self) -> dict[int, int]:
        """The teacher's added tokens that the student has: the student's numbers for them."""
        own = self.tokenizer.get_vocab()
        added = self.teacher.added_tokens_decoder.items()
        return {row: own[str(token)] for row, token in added if str(token) in own}

    @cached_property
    def _own_marks(self) -> dict[int, int]:
        """The student's added tokens, which the teacher has all."""
        return {row: row for row in self.tokenizer.added_tokens_decoder}

    def _parts(self, window: list[int], by: str) -> list[str | int]:
        """Return a window in parts: tokens of the student that are added tokens, and text."""
        marks, tokenizer = (self._marks, self.teacher) if by == "teacher" else (self._own_marks, self.tokenizer)
        found: list[str | int] = []
        run: list[int] = []
        for token in window:
            mark = marks.get(token)
            if mark is None:
                run.append(token)
            else:
                found += [_decoded(tokenizer, run), mark]
                run = []
        # The window may end within a character.
        return [part for part in (*found, _decoded(tokenizer, run).rstrip("\ufffd")) if part != ""]


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


class BothTokens:
    """A text in the tokens of both, grown piece by piece; after each piece both have read the same.

    Args:
        pair: The two tokenizers.
    """

    def __init__(self, pair: TokenPair) -> None:
        self._pair = pair
        self.ids: list[int] = []
        self._teacher_ids: list[int] = []
        self._positions: list[int] = []

    def add(self, text: str, ids: Sequence[int] | None = None) -> None:
        """Add a text.

        Args:
            text: The text.
            ids: The student's tokens, where they are known.
        """
        how = {"add_special_tokens": False, "verbose": False}
        if ids is None:
            ids = self._pair.tokenizer(text, **how)["input_ids"]
        self._add(ids, self._pair.teacher(text, **how)["input_ids"])

    def add_tokens(self, ids: Sequence[int]) -> None:
        """Add tokens of the student."""
        self._add(ids, self._pair.in_teacher(ids))

    def _add(self, ids: Sequence[int], teacher_ids: Sequence[int]) -> None:
        positions = [APART] * len(ids)
        for theirs, ours in zip(*self._pair.shared(teacher_ids, ids), strict=True):
            positions[ours] = len(self._teacher_ids) + theirs
        self.ids += ids
        self._teacher_ids += teacher_ids
        self._positions += positions

    def starts_apart(self) -> list[bool]:
        """Return for each token of the student whether a window that starts with it is within one of the teacher."""
        return [place > 0 and self._positions[place - 1] == APART for place in range(len(self._positions))]

    def window(self, start: int, count: int, begin: Sequence[int] = ()) -> tuple[list[int], list[int]]:
        """Return the teacher's tokens for some of the student's, and its position for each of these.

        Args:
            start: The first of the student's tokens, which starts no window within a token of the teacher.
            count: How many of the student's tokens.
            begin: The tokens of the student that a window begins with, before these.
        """
        first = self._positions[start - 1] + 1 if start else 0
        places = self._positions[start : start + count]
        moved = [APART if place == APART else place - first + len(begin) for place in places]
        end = max([first, *(place + 1 for place in places)])
        return [*self._pair.in_teacher(begin), *self._teacher_ids[first:end]], [*range(len(begin)), *moved]


def pair_tokens(tokenizer: Any, teacher: Any, rows: int, teacher_rows: int) -> TokenPair | None:
    """Return a student's tokenizer with its teacher's; None where both give the same number to the same token.

    Args:
        tokenizer: The student's tokenizer.
        teacher: The teacher's.
        rows: Rows of the student's embedding.
        teacher_rows: Rows of the teacher's.

    Raises:
        RequestError: The student has tokens that the teacher does not have.
    """
    ours, theirs = tokenizer.get_vocab(), teacher.get_vocab()
    if ours == theirs and rows == teacher_rows:
        return None
    found = map_tokens(teacher, tokenizer, teacher_rows, rows)
    if found is not None:
        return TokenPair(tokenizer, teacher, found)
    remedy = "name a teacher with the same tokenizer, or the model that this one was cut from"
    if missing := ours.keys() - theirs.keys():
        raise RequestError(
            f"the teacher's tokenizer is different: it has no token {min(missing)!r}, which the model's has; {remedy}"
        )
    if different := [token for token, row in theirs.items() if ours.get(token) != row]:
        token = min(different)
        raise RequestError(
            f"the teacher's tokenizer is different: token {token!r} has id {theirs[token]} there and "
            f"{ours.get(token)} here, and only fast tokenizers can be translated; {remedy}"
        )
    raise RequestError(
        f"the teacher has a vocabulary of {teacher_rows} tokens, the model one of {rows}, and only fast tokenizers "
        f"can be translated; {remedy}"
    )
