"""Choosing among recipes: the best expected ones under a budget, and the expected front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from ..architectures.description import ROWS
from ..planning.limits import BYTES, readable
from ..report.search import FoundModel
from .allocation import Allocations, Allocator, Budget, Candidate
from .damage import DamageModel, shape_key
from .making import Maker
from .recipe import Recipe

_REACH = 1.5
"""Shapes that are considered: those that alone lose so many times what the best recipe loses could not win, even if
what is expected of them is wrong by as much as it has ever been."""


class Choices:
    """All shapes of a search with their best allocations.

    Args:
        allocator: Allocates types.
        shapes: The shapes.
        maker: Says what smaller vocabularies take.
    """

    def __init__(self, allocator: Allocator, shapes: Iterable[Mapping[str, int]], maker: Maker) -> None:
        self.allocator = allocator
        self._shapes = [shape for shape in shapes if allocator.takes(shape)]
        self._maker = maker
        self._allocations: dict[tuple[tuple[str, int], ...], Allocations] = {}

    def expect(self, damage: DamageModel) -> None:
        """Let recipes be expected to cost what another model says; what is allocated does not depend on it.

        Args:
            damage: The model, which differs in its factor and its known shapes alone.
        """
        self.allocator.damage = damage

    def _of(self, shape: Mapping[str, int]) -> Allocations:
        key = shape_key(shape)
        if key not in self._allocations:
            nbytes = self._maker.tokenizer_bytes(self.allocator.layout, shape[ROWS])
            self._allocations[key] = self.allocator.path(shape, nbytes)
        return self._allocations[key]

    def _within(self, larger: Recipe | None) -> list[Mapping[str, int]]:
        """Return the shapes that are larger than another one in no dimension."""
        return [
            shape
            for shape in self._shapes
            if larger is None or all(size <= larger.shape[key] for key, size in shape.items())
        ]

    def best(self, budget: Budget, larger: Recipe | None = None) -> list[Candidate]:
        """Return the best allocation of shapes that keep a budget, the least expected divergence first.

        Shapes that lose more than `_REACH` times as much in 16 bits as the best recipe in its types are left out.

        Args:
            budget: The budget.
            larger: The recipe that they are to be parts of; None for the base.
        """
        damage = self.allocator.damage
        found: list[Candidate] = []
        least = math.inf
        for shape in sorted(self._within(larger), key=damage.of_shape):
            if damage.factor * damage.of_shape(shape) > _REACH * least:
                break
            best = self._of(shape).best(budget)
            if best is not None:
                found.append(best)
                least = min(least, best.divergence)
        return sorted(found, key=lambda candidate: candidate.divergence)

    def nearest(self, budget: Budget, larger: Recipe | None = None) -> Candidate:
        """Return the recipe that is beyond a budget by least.

        Args:
            budget: The budget, which nothing keeps.
            larger: The recipe that it is to be a part of; None for the base.
        """
        coarsest = [self._of(shape).candidate(0) for shape in self._within(larger)]
        return min(coarsest, key=lambda candidate: budget.worst(candidate.figures)[1])

    def front(self) -> list[tuple[float, float]]:
        """Return the expected front: bytes of the file, and the least divergence that they can have."""
        points = sorted(
            (float(nbytes), float(divergence))
            for each in map(self._of, self._shapes)
            for nbytes, divergence in zip(each.figures[BYTES], each.divergences, strict=True)
        )
        found: list[tuple[float, float]] = []
        for nbytes, divergence in points:
            if not found or divergence < found[-1][1] * 0.995:
                found.append((nbytes, divergence))
        return found


def next_candidate(
    ranked: Sequence[Candidate],
    measured: Mapping[str, float],
    tried: Sequence[Recipe],
    base: Mapping[str, int],
    *,
    first: bool,
) -> Candidate | None:
    """Return the recipe to make next; None where the best measured one is expected to stay the best.

    The second one changes other dimensions than the first, if any such comes near: predictions of alike recipes err
    alike.

    Args:
        ranked: The recipes that keep the budget, the best expected first.
        measured: Divergences of recipes that were made, by their keys.
        tried: The recipes that were made for this budget.
        base: The base's sizes by config key.
        first: Whether none was made for this budget yet.
    """
    waiting = [each for each in ranked if each.recipe.key not in measured]
    if not waiting:
        return None
    if first:
        return None if measured.get(ranked[0].recipe.key, math.inf) < math.inf else waiting[0]
    if len(tried) == 1:
        known = tried[0].changes(base).keys()
        others = [each for each in waiting if each.recipe.changes(base).keys() != known]
        if others and others[0].divergence < _REACH * ranked[0].divergence:
            return others[0]
    best = min((measured[each.recipe.key] for each in ranked if each.recipe.key in measured), default=math.inf)
    return waiting[0] if waiting[0].divergence < best else None


def binding_limits(budget: Budget, figures: Mapping[str, float], margin: float = 0.02) -> tuple[str, ...]:
    """Return the limits that figures come near to.

    Args:
        budget: The budget.
        figures: The figures.
        margin: How near, as a share of the limit.
    """
    return tuple(metric for metric, excess in budget.excess(figures).items() if excess > -margin)


def describe_nearest(budget: Budget, nearest: Candidate, base: Mapping[str, int]) -> str:
    """Return what comes nearest to a budget that nothing keeps, and which limit it breaks.

    Args:
        budget: The budget.
        nearest: The recipe.
        base: The base's sizes by config key.
    """
    limit, _ = budget.worst(nearest.figures)
    return (
        f"nothing that can be made keeps {limit.text}: the nearest is {nearest.recipe.describe(base)}, at "
        f"{readable(limit.metric, nearest.figures[limit.metric])}"
    )


def best_made(models: Iterable[FoundModel], target: str) -> FoundModel | None:
    """Return the best of the models that were made and keep a budget.

    Args:
        models: The models.
        target: The budget's text.
    """
    made = [each for each in models if each.measured is not None and target in each.keeps]
    return min(made, key=lambda each: each.figures.divergence, default=None)
