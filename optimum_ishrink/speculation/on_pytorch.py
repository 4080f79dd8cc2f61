"""Drafts in transformers: loading them, what their steps cost, and timing them with their base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..checkpoint.session import Session
from ..core.device import dtype_name
from ..report.draft import DraftTiming
from .assisted import Drafter
from .formula import Policy, StepCosts
from .options import DraftOptions
from .own_text import Choices, OwnText, choices, own_texts
from .shapes_tried import Candidate
from .step_cost import measure_costs
from .together import measure_together


class OnPyTorch:
    """transformers runs the base and its drafts.

    Args:
        session: The run over the base.
        options: The drafts' dtype, and what is measured.
    """

    build = ""

    def __init__(self, session: Session, options: DraftOptions) -> None:
        self.session = session
        self.options = options
        self.dtype = getattr(torch, options.draft_dtype) if options.draft_dtype else session.dtype
        self.base_type = dtype_name(session.dtype)
        self.draft_type = dtype_name(self.dtype)

    def load(self, candidate: Candidate) -> Drafter:
        """Load a draft.

        Args:
            candidate: The draft.
        """
        if candidate.source is None:
            return Drafter(candidate.name, self.session.model, candidate.exit)
        return Drafter(candidate.name, candidate.source.load_model(self.dtype, self.session.device))

    def texts(self, prompts: torch.Tensor) -> list[OwnText]:
        """Return what the base writes after prompts by greedy decoding.

        Args:
            prompts: Token ids, shape (prompts, length).
        """
        return own_texts(self.session.model, prompts, self.options.new_tokens)

    def expected(self, candidate: Candidate, texts: Sequence[OwnText]) -> tuple[list[Choices], StepCosts]:
        """Return where a draft would choose what the base wrote, and what a round costs.

        Args:
            candidate: The draft; its model is in memory only here.
            texts: What the base wrote.
        """
        drafter = self.load(candidate)
        costs = measure_costs(self.session.model, [drafter], texts[0].prompt)
        return choices(drafter, texts), costs[drafter.name]

    def together(
        self, chosen: Sequence[tuple[Candidate, Policy]], texts: Sequence[OwnText]
    ) -> Mapping[str, DraftTiming]:
        """Return what is measured of drafts and their base together.

        Args:
            chosen: The drafts, each with how long it proposes.
            texts: What the base wrote alone.
        """
        drafters = {candidate.name: (self.load(candidate), policy) for candidate, policy in chosen}
        return measure_together(self.session.model, drafters, texts, self.options.rounds)

    def write(self, candidate: Candidate, folder: Path) -> None:
        """Write nothing: transformers reads the checkpoint.

        Args:
            candidate: The draft.
            folder: The output folder.
        """
