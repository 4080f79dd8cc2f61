"""The best types of a shape's matrices under every budget: from the coarsest upwards, the best bargain first.

Each matrix has a convex curve of damage against bytes through some of the types. Going down all curves at once by the
steepest step that is left gives for every number of bytes the allocation with the least expected damage, up to the
last step (Everett's Lagrange multipliers). Damage sums up over matrices, and so do bytes and seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from ..architectures.description import LAYERS
from ..edge.gguf_quantizations import PLAIN_BLOCK, TENSOR_TYPES, bits, fits, stored_as
from ..planning.limits import BYTES, DECODE, MEMORY, PARAMS, TTFT, Limit
from ..planning.prices import CostModel
from ..report.search import kind_of
from .cost_model import features
from .damage import DamageModel
from .layout import Layout, Tensors
from .recipe import Recipe
from .turns import Workload

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Candidate:
    """A recipe with what it is expected to cost.

    Args:
        recipe: The recipe.
        divergence: Expected divergence from the base, nats per token.
        figures: Parameters and bytes of the file, and where they are known tokens per second, seconds to the first
            token and bytes of memory.
    """

    recipe: Recipe
    divergence: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class _Step:
    """A group of matrices goes from one type to the next better one that is worth it.

    Args:
        group: Number of the group.
        type: The new type.
        nbytes: Additional bytes.
        damage: Damage that it saves.
        seconds: Additional seconds of decoding a token, and of reading the prompt.
        memory: Additional bytes of memory.
    """

    group: int
    type: str
    nbytes: float
    damage: float
    seconds: tuple[float, float]
    memory: float


@dataclass(frozen=True)
class Budget:
    """What a search chooses under.

    Args:
        limits: The limits.
        base: The figures of the unpruned model, which relative limits refer to.
    """

    limits: Sequence[Limit]
    base: Mapping[str, float]

    def allows(self, figures: Mapping[str, float]) -> bool:
        """Whether figures keep all limits.

        Args:
            figures: The figures.
        """
        return all(limit.allows(figures[limit.metric], self.base[limit.metric]) for limit in self.limits)

    def excess(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return by how much figures are beyond each limit, as a share of it; negative where there is room.

        Args:
            figures: The figures.
        """
        found = {}
        for limit in self.limits:
            wanted, value = limit.against(self.base[limit.metric]), figures[limit.metric]
            found[limit.metric] = wanted / value - 1 if limit.metric == DECODE else value / wanted - 1
        return found

    def worst(self, figures: Mapping[str, float]) -> tuple[Limit, float]:
        """Return the limit that figures are beyond by most, and by how much as a share of it.

        Args:
            figures: The figures.
        """
        excess = self.excess(figures)
        limit = max(self.limits, key=lambda each: excess[each.metric])
        return limit, excess[limit.metric]


class Allocator:
    """Allocates types to the matrices of any shape of a model.

    Args:
        layout: The base's file.
        damage: What recipes are expected to cost.
        costs: What files are expected to cost in time and memory; None where that is not asked.
        workload: What is timed.
        types: Names of the types to choose from.
    """

    def __init__(
        self,
        layout: Layout,
        damage: DamageModel,
        costs: CostModel | None,
        workload: Workload,
        types: Sequence[str],
    ) -> None:
        self.layout = layout
        self.damage = damage
        self.costs = costs
        self.workload = workload
        self.types = sorted(types, key=bits)

    @cached_property
    def _blocks(self) -> list[list[int]]:
        """Layers whose shares of the damage are the same: they are chosen together."""
        found: list[list[int]] = []
        last = None
        for layer, share in enumerate(self.damage.types.blocks):
            if share != last:
                found.append([])
            found[-1].append(layer)
            last = share
        return found

    def takes(self, shape: Mapping[str, int]) -> bool:
        """Whether every matrix of a shape can be stored in some of the types.

        Args:
            shape: The sizes by config key.
        """
        if any(TENSOR_TYPES[name].block <= PLAIN_BLOCK for name in self.types):
            return True
        rows = {dims[0] for tensor, dims in self.layout.in_shape(shape) if tensor.is_matrix}
        return all(any(fits(row, name) for name in self.types) for row in rows)

    def path(self, shape: Mapping[str, int], tokenizer: int | None = None) -> Allocations:
        """Return all allocations of a shape that are the best for some number of bytes.

        Args:
            shape: The sizes by config key.
            tokenizer: Bytes of its vocabulary in the header; the base's by default.
        """
        layout, damage = self.layout, self.damage
        tensors = layout.in_shape(shape)
        layers, total = shape[LAYERS], damage.base[LAYERS]
        blocks = self._blocks if layers == total else [list(range(layers))]
        shares = damage.types.blocks
        prices = _Prices(self.costs, self.workload, layout)
        groups: list[tuple[str, ...]] = []
        steps: list[_Step] = []
        coarsest: dict[str, str] = {}
        start = 0.0
        by_kind: dict[str, list[tuple[str, tuple[int, ...], int | None]]] = {}
        for tensor, dims in tensors:
            if tensor.is_matrix:
                by_kind.setdefault(kind_of(tensor.name), []).append((tensor.name, dims, tensor.layer))
        for kind, members in by_kind.items():
            row = members[0][1][0]
            able = [name for name in self.types if fits(row, name)]
            sizes = [bits(stored_as(row, TENSOR_TYPES[name]).name) for name in able]
            losses = [damage.types.of_kind(kind, name) for name in able]
            hull = _lower_hull(sizes, losses)
            parts = blocks if members[0][2] is not None else [[-1]]
            for block in parts:
                names = tuple(name for name, _, layer in members if layer is None or layer in block)
                if not names:
                    continue
                weights = sum(prod(dims) for name, dims, _ in members if name in names)
                share = 1.0
                if members[0][2] is not None:
                    share = sum(shares[layer] for layer in block) if layers == total else layers / total
                coarsest.update(dict.fromkeys(names, able[hull[0]]))
                start += share * losses[hull[0]]
                for old, new in pairwise(hull):
                    steps.append(
                        _Step(
                            len(groups),
                            able[new],
                            weights * (sizes[new] - sizes[old]),
                            share * (losses[old] - losses[new]),
                            prices.seconds(names[0], weights, able[old], able[new]),
                            prices.memory(weights, able[old], able[new]),
                        )
                    )
                groups.append(names)
        steps.sort(key=lambda step: -step.damage / step.nbytes)
        first = Recipe(dict(shape), coarsest)
        return Allocations(self, first, groups, steps, start, tokenizer, tensors)

    def figures(
        self, recipe: Recipe, tokenizer: int | None = None, tensors: Tensors | None = None
    ) -> dict[str, float]:
        """Return the figures of a recipe: parameters, the exact bytes of its file, and what is predicted.

        Args:
            recipe: The recipe.
            tokenizer: Bytes of its vocabulary in the header; the base's by default.
            tensors: What `Layout.in_shape` gives for its shape, where that is known.
        """
        tensors = self.layout.in_shape(recipe.shape) if tensors is None else tensors
        found = {
            PARAMS: float(self.layout.binding.num_parameters(recipe.shape)),
            BYTES: float(self.layout.nbytes(recipe.shape, recipe.types, tokenizer, tensors)),
        }
        if self.costs is not None:
            found |= self.costs.predict(features(self.layout, recipe.shape, recipe.types, self.workload, tensors))
        return found


@dataclass(frozen=True)
class _Prices:
    """What a weight costs in each type."""

    costs: CostModel | None
    workload: Workload
    layout: Layout

    def seconds(self, name: str, weights: float, old: str, new: str) -> tuple[float, float]:
        """Return the additional seconds of decoding a token and of reading the prompt."""
        layout = self.layout
        if self.costs is None or (name == layout.embedding and name != layout.head):
            return 0.0, 0.0
        decode, prompt = self.costs.prices[DECODE], self.costs.prices[TTFT]
        is_head = name == layout.head
        reading = 0.0 if is_head else weights * self.workload.prompt * (prompt.get(new, 0.0) - prompt.get(old, 0.0))
        return weights * (decode.get(new, 0.0) - decode.get(old, 0.0)), reading

    def memory(self, weights: float, old: str, new: str) -> float:
        """Return the additional bytes of memory."""
        if self.costs is None or MEMORY not in self.costs.prices:
            return 0.0
        prices = self.costs.prices[MEMORY]
        return weights * (prices.get(new, 0.0) - prices.get(old, 0.0))


class Allocations:
    """The allocations of one shape, from the coarsest to the finest.

    Args:
        allocator: What made it.
        first: The coarsest recipe.
        groups: Names of the matrices that are chosen together.
        steps: The steps, the best bargain first.
        start: What the types of the coarsest recipe cost, before the factor.
        tokenizer: Bytes of the vocabulary in the header; None for the base's.
        tensors: The shape's tensors.
    """

    def __init__(
        self,
        allocator: Allocator,
        first: Recipe,
        groups: Sequence[tuple[str, ...]],
        steps: Sequence[_Step],
        start: float,
        tokenizer: int | None,
        tensors: Tensors,
    ) -> None:
        self._allocator = allocator
        self._first = first
        self._groups = groups
        self._steps = steps
        self._start = start
        self.shape = first.shape
        self._tokenizer = tokenizer
        self._tensors = tensors

    @property
    def divergences(self) -> Floats:
        """Expected divergence after each number of steps, shape (steps + 1,)."""
        damage = self._allocator.damage
        return damage.factor * (damage.of_shape(self.shape) + self._losses)

    @cached_property
    def _losses(self) -> Floats:
        """What the types cost after each number of steps, before the factor, shape (steps + 1,)."""
        return self._start - self._sums([step.damage for step in self._steps])

    @cached_property
    def figures(self) -> dict[str, Floats]:
        """The figures after each number of steps; each has the shape (steps + 1,)."""
        first = self._allocator.figures(self._first, self._tokenizer, self._tensors)
        found = {
            PARAMS: np.full(len(self._steps) + 1, first[PARAMS]),
            BYTES: first[BYTES] + self._sums([step.nbytes for step in self._steps]),
        }
        if DECODE in first:
            found[DECODE] = 1 / (1 / first[DECODE] + self._sums([step.seconds[0] for step in self._steps]))
            found[TTFT] = first[TTFT] + self._sums([step.seconds[1] for step in self._steps])
        if MEMORY in first:
            found[MEMORY] = first[MEMORY] + self._sums([step.memory for step in self._steps])
        return found

    @staticmethod
    def _sums(values: Sequence[float]) -> Floats:
        return np.concatenate([[0.0], np.cumsum(values)]) if len(values) else np.zeros(1)

    def __len__(self) -> int:
        return len(self._steps) + 1

    def candidate(self, count: int) -> Candidate:
        """Return the allocation after a number of steps, its bytes exact.

        Args:
            count: The number of steps.
        """
        types = dict(self._first.types)
        for step in self._steps[:count]:
            types.update(dict.fromkeys(self._groups[step.group], step.type))
        recipe = Recipe(self._first.shape, types)
        figures = self._allocator.figures(recipe, self._tokenizer, self._tensors)
        return Candidate(recipe, float(self.divergences[count]), figures)

    def best(self, budget: Budget) -> Candidate | None:
        """Return the allocation with the least expected divergence that keeps a budget; None if there is none.

        Args:
            budget: The budget.
        """
        fits = np.ones(len(self), dtype=bool)
        for limit in budget.limits:
            fits &= limit.allows(self.figures[limit.metric], budget.base[limit.metric])
        for count in reversed(np.flatnonzero(fits).tolist()):
            found = self.candidate(count)  # the sums leave out what fills tensors up to their alignment
            if budget.allows(found.figures):
                return found
        return None


def _lower_hull(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Return the indices of the lower convex hull of points with ascending x, up to the lowest y."""
    hull: list[int] = []
    for index in range(len(x)):
        if hull and y[index] >= y[hull[-1]]:
            continue
        if hull and x[index] == x[hull[-1]]:
            hull.pop()
        while len(hull) > 1 and (y[hull[-1]] - y[hull[-2]]) * (x[index] - x[hull[-1]]) >= (y[index] - y[hull[-1]]) * (
            x[hull[-1]] - x[hull[-2]]
        ):
            hull.pop()
        hull.append(index)
    return hull
