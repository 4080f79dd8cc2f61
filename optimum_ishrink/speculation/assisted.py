"""Assisted generation in transformers: what is drafted by what, counted and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..modeling.early_exit import first_layers
from .formula import Policy, Rounds

_NEUTRAL: Mapping[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "use_cache": True}
"""Plain greedy decoding, whatever the model's generation config says."""


@dataclass(frozen=True)
class Drafter:
    """What drafts for a base.

    Args:
        name: What tables call it.
        model: The draft; the base itself for an early exit.
        exit: Layers of the base that run; None for a model of its own.
    """

    name: str
    model: Any
    exit: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What `generate` of the base is given."""
        return {"assistant_model": self.model} if self.exit is None else {"assistant_early_exit": self.exit}

    @contextmanager
    def running(self) -> Iterator[Any]:
        """Yield the model as it drafts: whole, or its first layers alone."""
        if self.exit is None:
            yield self.model
        else:
            with first_layers(self.model, self.exit):
                yield self.model


class _Clock:
    """Receives tokens as they are written, as a streamer of transformers, and notes when."""

    def __init__(self) -> None:
        self.puts: list[tuple[float, int]] = []

    def put(self, value: torch.Tensor) -> None:
        """Note the time; the first call brings the prompt."""
        self.puts.append((time.perf_counter(), value.numel()))

    def end(self) -> None:
        """Note nothing: the last token came before."""


@dataclass(frozen=True)
class Written:
    """One output.

    Args:
        tokens: Its tokens, after the prompt.
        rounds: What happened in its rounds; of the base alone each token is one.
        later: Tokens after those of the first pass, which reads the prompt.
        seconds: Time for these.
    """

    tokens: tuple[int, ...]
    rounds: Rounds
    later: int
    seconds: float

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first pass; None where there was no other."""
        return self.later / self.seconds if self.later and self.seconds > 0 else None


def set_policy(model: Any, policy: Policy) -> None:
    """Set how long a draft proposes, where transformers reads it: in the draft's generation config.

    Args:
        model: The draft, or the base of an early exit.
        policy: How long.
    """
    config = model.generation_config
    config.num_assistant_tokens = policy.length
    config.num_assistant_tokens_schedule = "constant"
    config.assistant_confidence_threshold = policy.threshold


@contextmanager
def _counted(model: Any) -> Iterator[list[int]]:
    """Count the tokens that a model drafts, a number for each round."""
    plain, counts = model.generate, []

    def generate(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        if getattr(kwargs.get("generation_config"), "is_assistant", None):
            counts.append(output.sequences.shape[1] - kwargs["input_ids"].shape[1])
        return output

    model.generate = generate
    try:
        yield counts
    finally:
        del model.generate


@torch.inference_mode()
def write(base: Any, prompt: torch.Tensor, new_tokens: int, drafter: Drafter | None = None) -> Written:
    """Write after a prompt by greedy decoding, with a draft or without.

    Args:
        base: The base.
        prompt: Token ids, shape (1, length).
        new_tokens: Tokens to write, at most.
        drafter: What drafts; None for the base alone.
    """
    clock = _Clock()
    drafted: list[int] = []
    how = {**_NEUTRAL, "max_new_tokens": new_tokens, "streamer": clock, "attention_mask": torch.ones_like(prompt)}
    if drafter is None:
        output = base.generate(prompt, **how)
    else:
        with _counted(drafter.model) as drafted:
            output = base.generate(prompt, **how, **drafter.arguments)
    tokens = tuple(output[0, prompt.shape[1] :].tolist())
    passes = clock.puts[1:]
    accepted = sum(count - 1 for _, count in passes)
    began, first = passes[0]
    return Written(
        tokens,
        Rounds(len(tokens), len(passes), sum(drafted), accepted),
        later=len(tokens) - first,
        seconds=passes[-1][0] - began,
    )


@torch.inference_mode()
def logit_gap(base: Any, prompt: torch.Tensor, tokens: Sequence[int], other: int, position: int) -> float:
    """Return by how much a base prefers its own token to another one, in one pass over the text.

    Args:
        base: The base.
        prompt: Token ids, shape (1, length).
        tokens: What it wrote.
        other: The other token.
        position: Place of both after the prompt.
    """
    before = torch.tensor([tokens[:position]], dtype=prompt.dtype, device=prompt.device)
    logits = base(input_ids=torch.cat([prompt, before], dim=1)).logits[0, -1].float()
    return float(logits[tokens[position]] - logits[other])
