"""The expected divergence of a recipe: what was measured of each dimension and each type, and how it adds.

To second order, the divergences of independent changes add up. The curve of a dimension is a share of it and its
square, fitted to measured cuts; a matrix' damage by a type is that measured for its kind at the coarsest type, by the
share of its block of layers, and by the squared error of the type against the coarsest one's. How far sums are from
what was measured together gives a factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, log

import numpy as np

from ..architectures.description import GROUPS, LAYERS, NEURONS, ROWS
from ..planning.prices import non_negative_least_squares
from ..planning.row_choices import RowChoices
from ..report.search import kind_of
from .recipe import Recipe

_LEAST = 1e-6
"""Nats per token that stand for nothing where a logarithm is taken."""


@dataclass(frozen=True)
class Curve:
    """The divergence that a share of one dimension costs: `once` times the share, and `squared` times its square."""

    once: float
    squared: float

    def at(self, share: float) -> float:
        """Return the divergence in nats per token.

        Args:
            share: What is removed of the dimension; of the vocabulary, the additional tokens per token of text.
        """
        return self.once * share + self.squared * share**2


def fit_curve(points: Sequence[tuple[float, float]], prior: Curve) -> Curve:
    """Fit a curve to measured cuts, with non-negative factors.

    Args:
        points: Shares and divergences. With one of them, the prior's form is scaled to it.
        prior: The curve where nothing is known.
    """
    if not points:
        return prior
    if len(points) == 1:
        share, value = points[0]
        scale = value / max(prior.at(share), _LEAST)
        return Curve(prior.once * scale, prior.squared * scale)
    shares = np.array([share for share, _ in points])
    values = np.array([max(value, _LEAST) for _, value in points])
    table = np.stack([shares, shares**2], axis=1) / values[:, None]
    once, squared = non_negative_least_squares(table, np.ones(len(values)))
    return Curve(float(once), float(squared))


PRIORS: Mapping[str, Curve] = {
    NEURONS: Curve(0.6, 3.4),
    LAYERS: Curve(3.5, 0.0),
    GROUPS: Curve(0.0, 23.0),
    ROWS: Curve(8.0, 0.0),
}
"""Curves where nothing was measured, in nats per token: those of SmolLM2-135M-Instruct with compensation."""

TYPE_PRIORS: Mapping[str, float] = {
    "q8_0": 0.004,
    "q6_k": 0.01,
    "q5_1": 0.03,
    "q5_0": 0.04,
    "q5_k": 0.025,
    "q4_1": 0.10,
    "q4_0": 0.15,
    "q4_k": 0.08,
    "iq4_nl": 0.10,
    "iq4_xs": 0.11,
    "q3_k": 0.35,
    "q2_k": 1.5,
}
"""Divergence of a whole model in one type where nothing was measured, nats per token: what compact models of 16 bits
lose, in round numbers."""


@dataclass(frozen=True)
class TypeDamage:
    """What the types of matrices cost.

    Args:
        kinds: Divergence of each kind of matrix in the coarsest type, in all layers.
        blocks: For each layer its share of a kind's divergence; they sum to 1.
        errors: Squared error of each type against the coarsest one's, by kind.
        together: Divergence of all kinds at once against the sum of theirs.
    """

    kinds: Mapping[str, float]
    blocks: Sequence[float]
    errors: Mapping[str, Mapping[str, float]]
    together: float = 1.0

    def of_kind(self, kind: str, type_name: str) -> float:
        """Return the divergence of a kind of matrix in a type, in all layers.

        Args:
            kind: The kind.
            type_name: Name of the type.
        """
        return self.together * self.kinds.get(kind, 0.0) * self.errors.get(kind, {}).get(type_name, 0.0)


@dataclass(frozen=True)
class DamageModel:
    """What a recipe is expected to cost.

    Args:
        base: The base's sizes by config key.
        curves: The curve of each dimension.
        types: What the types of matrices cost.
        rows: What a smaller vocabulary costs in tokens; None where it stays.
        known: Measured divergences of shapes in 16 bits, by the shape.
        factor: What recipes that were really made had, against what was expected.
        spread: How far such recipes were from that, as a standard deviation of the logarithm.
    """

    base: Mapping[str, int]
    curves: Mapping[str, Curve]
    types: TypeDamage
    rows: RowChoices | None = None
    known: Mapping[tuple[tuple[str, int], ...], float] = field(default_factory=dict)
    factor: float = 1.0
    spread: float = 0.25

    def share(self, key: str, size: int) -> float:
        """Return what a size removes of a dimension (see `removed_share`).

        Args:
            key: Config key of the dimension.
            size: The size.
        """
        return removed_share(self.base, key, size, self.rows)

    def of_shape(self, shape: Mapping[str, int]) -> float:
        """Return the divergence of a shape in 16 bits.

        Args:
            shape: The sizes by config key.
        """
        key = shape_key(shape)
        if key in self.known:
            return self.known[key]
        return sum(curve.at(self.share(name, shape[name])) for name, curve in self.curves.items() if name in shape)

    def of(self, recipe: Recipe) -> float:
        """Return the divergence of a recipe.

        Args:
            recipe: The recipe.
        """
        layers = self.base[LAYERS]
        found = 0.0
        for name, each in recipe.types.items():
            share, parts = 1.0, name.split(".")
            if parts[0] == "blk":
                share = self.types.blocks[int(parts[1])] if recipe.shape[LAYERS] == layers else 1 / layers
            found += share * self.types.of_kind(kind_of(name), each)
        return self.factor * (self.of_shape(recipe.shape) + found)

    def corrected(self, measured: Sequence[tuple[Recipe, float]]) -> DamageModel:
        """Return the model with a factor, so that it agrees on average with recipes that were really made.

        Args:
            measured: Recipes with their divergences.
        """
        plain = replace(self, factor=1.0)
        logs = [log(max(value, _LEAST) / max(plain.of(recipe), _LEAST)) for recipe, value in measured]
        if not logs:
            return self
        # One made recipe moves the factor half of the way: what it differs by may be its own.
        mean = sum(logs) / (len(logs) + 1)
        spread = (sum((each - mean) ** 2 for each in logs) + self.spread**2) / (len(logs) + 1)
        return replace(self, factor=exp(mean), spread=spread**0.5)


def removed_share(base: Mapping[str, int], key: str, size: int, rows: RowChoices | None) -> float:
    """Return what a size removes of a dimension; of the vocabulary, the additional tokens per token of text.

    Args:
        base: The base's sizes by config key.
        key: Config key of the dimension.
        size: The size.
        rows: What a smaller vocabulary costs in tokens; None where it stays.
    """
    if key == ROWS:
        return 0.0 if rows is None or size == base[ROWS] else rows.extra(size)
    return 1 - size / base[key]


def shape_key(shape: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Return a shape as a key of mappings.

    Args:
        shape: The sizes by config key.
    """
    return tuple(sorted(shape.items()))
