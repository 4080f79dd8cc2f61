"""The record of a draft: every one that was tried, what was expected of it, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.json_codec import from_plain, to_plain
from ..core.json_files import read_json
from ..errors import SourceError
from .environment import Environment
from .measurement import SpeedComparison

DRAFT_FILE = "draft.json"
SCHEMA = 1


@dataclass(frozen=True)
class DraftExpectation:
    """What is expected of a draft before both models are timed together.

    Args:
        step_cost: Time of a step of the draft, in steps of the base alone; both were timed in turn.
        pass_costs: Time of a pass of the base over several tokens, in its steps, by their number.
        agreement: Share of the tokens that the base wrote by greedy decoding at which the draft, reading the same
            text, finds the same token most likely.
        num_assistant_tokens: Tokens drafted in a round, at most: those that are expected to be fastest.
        confidence_threshold: Probability of a token below which a round ends with it; 0 for never.
        tokens_per_pass: Tokens that a pass of the base yields, replayed on that text.
        formula_tokens_per_pass: The same by `(1 - a^(k+1)) / (1 - a)` of arXiv:2211.17192, with the agreement as `a`
            and `num_assistant_tokens` as `k`.
        speedup: Speed relative to the base alone, from the replay and the costs.
        formula_speedup: The same by theorem 3.8 of arXiv:2211.17192 with the best `k`, which takes a pass over several
            tokens to be as fast as a step.
    """

    step_cost: float
    pass_costs: Mapping[str, float]
    agreement: float
    num_assistant_tokens: int
    confidence_threshold: float
    tokens_per_pass: float
    formula_tokens_per_pass: float
    speedup: float
    formula_speedup: float


@dataclass(frozen=True)
class Divergent:
    """A prompt after which the assisted output is not the base's.

    Args:
        prompt: Number of the prompt, from 0.
        position: The first token that differs, from 0.
        gap: By how much the base's logit of its own token is above that of the other, in one pass over the text; 0 or
            less where that pass prefers the other. None where the runtime does not say.
    """

    prompt: int
    position: int
    gap: float | None


@dataclass(frozen=True)
class DraftTiming:
    """What was measured of a draft and its base together.

    Args:
        speed: Decode speed relative to the base alone, in rounds of both in turn.
        base_tokens_per_second: Median decode speed of the base alone.
        tokens_per_second: Median decode speed of both.
        tokens: Tokens that were written after all prompts.
        passes: Passes of the base for these.
        drafted: Tokens that the draft proposed.
        accepted: Those that the base chose, too.
        prompts: Prompts.
        identical: Prompts after which the output is the base's, token by token.
        divergent: The others.
    """

    speed: SpeedComparison
    base_tokens_per_second: float
    tokens_per_second: float
    tokens: int
    passes: int
    drafted: int
    accepted: int
    prompts: int
    identical: int
    divergent: tuple[Divergent, ...] = ()

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that were accepted; 0 where none was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a pass of the base yields."""
        return self.tokens / self.passes if self.passes else 0.0


@dataclass(frozen=True)
class TriedDraft:
    """A draft that was tried.

    Args:
        name: What tables call it.
        shape: Its sizes by config key, as far as they are not the base's; `early_exit` is the number of layers of the
            base that run.
        num_parameters: Its parameters; of an early exit, those of the model.
        expected: What was expected, as it was cut.
        recovered: Whether it was trained since.
        expected_recovered: What was expected after the training; None without one.
        timing: What was measured; None for one that was not timed.
        made: Whether it was made here, and can be written.
    """

    name: str
    shape: Mapping[str, int]
    num_parameters: int
    expected: DraftExpectation
    recovered: bool = False
    expected_recovered: DraftExpectation | None = None
    timing: DraftTiming | None = None
    made: bool = False

    @property
    def known(self) -> DraftExpectation:
        """What is expected of it as it is now."""
        return self.expected_recovered or self.expected

    @property
    def speedup(self) -> float:
        """Decode speed relative to the base alone: measured, or else expected."""
        return self.known.speedup if self.timing is None else self.timing.speed.ratio


@dataclass(frozen=True)
class DraftRecord:
    """Drafts of one model.

    Args:
        model: Name of the base.
        base: Its sizes by config key.
        num_parameters: Its parameters.
        runtime: What ran both.
        build: Its version; empty for PyTorch, whose version is in the environment.
        base_type: The base's dtype or quantisation.
        draft_type: The drafts'.
        texts: Names of the texts that prompts were taken from.
        prompts: Prompts.
        prompt_length: Tokens of each.
        new_tokens: Tokens decoded after each, at most.
        rounds: Measured rounds.
        tried: The drafts, the best first.
        best: Name of the fastest that was timed.
        target: The speed that was asked for, as the user wrote it; None for the fastest.
        environment: Where it was measured.
    """

    model: str
    base: Mapping[str, int]
    num_parameters: int
    runtime: str
    build: str
    base_type: str
    draft_type: str
    texts: tuple[str, ...]
    prompts: int
    prompt_length: int
    new_tokens: int
    rounds: int
    tried: tuple[TriedDraft, ...]
    best: str
    target: str | None
    environment: Environment

    @property
    def best_draft(self) -> TriedDraft:
        """The fastest that was timed."""
        return next(each for each in self.tried if each.name == self.best)

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {"schema": SCHEMA, **to_plain(self)}

    @classmethod
    def read(cls, folder: Path) -> DraftRecord:
        """Read the record of an output folder.

        Args:
            folder: The folder.

        Raises:
            SourceError: It has none, or the record is damaged or of another version.
        """
        data = read_json(folder / DRAFT_FILE)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise SourceError(f"{folder / DRAFT_FILE} is of another version")
        return from_plain(cls, {key: value for key, value in data.items() if key != "schema"}, kind="draft")
