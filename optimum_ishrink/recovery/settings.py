"""What a recovery is asked for, as this room reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..text.sources import TextSource
from .loss import Term, parse_loss
from .trainable import LORA, LoraSettings, parse_trained
from .training_text import Labels

WARM_UP_SHARE = 0.05
"""Share of the steps in which the learning rate rises from zero; it falls by a cosine after them."""

LEARNING_RATES = {LORA: 1e-3, "other": 1e-4}
"""Peak learning rates: an adapter starts at nothing and has to grow; weights that work only have to be adjusted."""


@dataclass(frozen=True)
class RecoverySettings:
    """What a recovery is asked for.

    Args:
        data: Where the text comes from.
        tokens: Tokens of it, at most, those that are held out among them.
        length: Tokens in a window.
        sampling_temperature: Temperature of `self` text.
        sampling_filter: Share of `self` text that is dropped for its perplexity.
        cache: Folder in which `self` text and the teacher's top k are kept for other runs; None to keep them only as
            long as this run.
        loss: Sum of losses, such as `kl+hidden:0.1`.
        trained: What is trained: `lora`, `full`, or parts such as `norms+last:2`.
        lora: Shape of the adapter.
        lora_start: `zero`, or `closed-form`: from the cut.
        compensation: `ridge` to solve the projections that read what was cut anew before the training, or `none`.
        compensation_samples: Windows that it solves on, at most.
        learning_rate: Peak of it; None for the default of what is trained.
        batch_size: Windows in a step, over all processes.
        micro_batch_size: Windows run at once in one process, at most.
        epochs: How often the text is gone through.
        temperature: Temperature of the distributions that `kl` compares.
        top_k: Tokens of the teacher's distribution that are compared one by one; None for all.
        labels: Tokens that `ce` is taken on: all of the `text`, or those of `answers`.
        save_steps: Steps between evaluations, each with a checkpoint.
        patience: Evaluations without a better one before training stops.
        checkpointing: Whether layers are computed a second time in the backward pass, to save memory.
        seed: Seed of orders, initial values and dropout.
    """

    data: tuple[TextSource, ...]
    tokens: int
    length: int
    sampling_temperature: float
    sampling_filter: float
    cache: Path | None
    loss: str
    trained: str
    lora: LoraSettings
    lora_start: str
    compensation: str
    compensation_samples: int
    learning_rate: float | None
    batch_size: int
    micro_batch_size: int
    epochs: int
    temperature: float
    top_k: int | None
    labels: Labels
    save_steps: int
    patience: int
    checkpointing: bool
    seed: int

    @property
    def terms(self) -> tuple[Term, ...]:
        """The losses."""
        return parse_loss(self.loss)

    @property
    def parts(self) -> tuple[str, ...]:
        """What is trained."""
        return parse_trained(self.trained)

    @property
    def uses_lora(self) -> bool:
        """Whether an adapter is trained."""
        return self.parts == (LORA,)

    @property
    def peak_learning_rate(self) -> float:
        """The peak of the learning rate."""
        return self.learning_rate or LEARNING_RATES[LORA if self.uses_lora else "other"]

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss compares with a teacher."""
        return any(term.loss.teacher for term in self.terms)

    @property
    def needs_teacher_model(self) -> bool:
        """Whether a teacher's weights are needed at all: for a loss, for its own words or for where to start."""
        return self.needs_teacher or any(source.is_self for source in self.data) or self.starts_from_cut

    @property
    def starts_from_cut(self) -> bool:
        """Whether what was cut is made up for in closed form before the training."""
        return self.compensates or (self.uses_lora and self.lora_start != "zero")

    @property
    def compensates(self) -> bool:
        """Whether weights of the student are solved anew before the training."""
        return self.compensation != "none"

    @property
    def caches_teacher(self) -> bool:
        """Whether the teacher's top k are computed once: when epochs or runs can share them and no loss reads more."""
        shared = self.epochs > 1 or self.cache is not None
        return self.top_k is not None and shared and not self.reads("hidden_states") and not self.reads("values")

    def reads(self, what: str) -> bool:
        """Whether a loss reads this of the teacher."""
        return any(term.loss.teacher and term.loss.reads == what for term in self.terms)
