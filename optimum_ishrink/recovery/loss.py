"""Weighted sums of losses: `kl+hidden:0.1`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import RequestError
from .loss_registry import LOSSES, Loss


@dataclass(frozen=True)
class Term:
    """One loss with its weight in the sum."""

    loss: Loss
    weight: float


def parse_loss(text: str) -> tuple[Term, ...]:
    """Parse a sum of losses.

    Args:
        text: Names joined by `+`, each with an optional weight after a colon: `ce`, `kl+hidden:0.1`.

    Raises:
        RequestError: A name is unknown or appears twice, or a weight is not a positive number.
    """
    terms: list[Term] = []
    for part in str(text).split("+"):
        name, colon, weight_text = part.strip().partition(":")
        loss = LOSSES[name.strip()]
        try:
            weight = float(weight_text) if colon else 1.0
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise RequestError(f"the weight of loss {name!r} must be a positive number, not {weight_text!r}: kl:0.5")
        if any(term.loss is loss for term in terms):
            raise RequestError(f"loss {name!r} appears twice in {text!r}; name it once, with a weight")
        terms.append(Term(loss, weight))
    return tuple(terms)
