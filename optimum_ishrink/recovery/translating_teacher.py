"""A teacher that reads other tokens than the student, and says what it predicts in the student's."""

from __future__ import annotations

import torch

from ..text.token_map import TokenMap
from .observe import observe
from .targets import TopK, top_k
from .teacher import Lesson, LiveTeacher
from .teacher_text import TeacherText

IMPOSSIBLE = -1e4
"""Log-probability of a token that nothing is carried to; -inf would give NaN where it is multiplied by its 0."""


class TranslatingTeacher:
    """A model that reads the text in its own tokens, on every batch.

    Its distributions are carried to the student's vocabulary first; a top k is of what was carried.

    Args:
        live: The model, and what is wanted of it.
        text: The recovery text in its tokens.
        tokens: How its tokens correspond to the student's.
    """

    def __init__(self, live: LiveTeacher, text: TeacherText, tokens: TokenMap) -> None:
        assert not live.reads["values"], "attention cannot be compared between positions of different tokens"
        self.live, self.text, self.tokens = live, text, tokens
        self._given = text
        self.model, self.k = live.model, live.k

    def follow(self, sampled: TeacherText) -> None:
        """Read further windows, which take the place of those that were sampled before them.

        Args:
            sampled: Windows that the student sampled; their numbers go on from those of the recovery text.
        """
        self.text = TeacherText.cat([self._given, sampled])

    @property
    def rows(self) -> int:
        """How many tokens its distributions are over."""
        return len(self.tokens.lengths)

    @torch.no_grad()
    def teach(self, input_ids: torch.Tensor, windows: torch.Tensor) -> Lesson:
        """Run the model on the windows of a batch in its own tokens; `input_ids` says only where the student is.

        Args:
            input_ids: Token ids of the student, shape (batch, length).
            windows: Number of each window in the recovery text, shape (batch,).
        """
        text = self.text[windows.cpu()]
        device = self.model.device
        seen = observe(self.model, text.input_ids.to(device), layers=self.live.reads["layers"])
        shared = text.shared.to(device)
        # Where nothing is shared any position does: what is there is not read.
        positions = text.positions.clamp_min(0).to(device).unsqueeze(-1)
        last, *layers = (
            state.gather(1, positions.expand(-1, -1, state.shape[-1])) for state in (seen.last, *seen.layers)
        )
        known = shared[:, :-1].flatten()
        rows = last[:, :-1].flatten(0, 1)

        @torch.no_grad()
        def distribution(part: slice) -> torch.Tensor | TopK:
            carried = self._carry(rows[part][known[part]], seen.output_class)
            return carried if self.k is None else top_k(carried, self.k, temperature=self.live.temperature)

        return Lesson(distribution if self.live.logits else None, tuple(layers), shared=known.to(input_ids.device))

    def _carry(self, states: torch.Tensor, output_class: type) -> torch.Tensor:
        """Return log-probabilities over the student's tokens. They are logits, too: a temperature divides them."""
        found = [
            self.tokens.carry(self.live.head(part, output_class)) for part in torch.split(states, self.live.head.rows)
        ]
        return torch.cat(found).clamp_min_(IMPOSSIBLE)
