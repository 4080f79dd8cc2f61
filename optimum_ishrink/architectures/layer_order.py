"""Choosing layers so that what each of them is comes in the order that a runtime takes for given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class LayerRule(Protocol):
    """What the layers of a cut have to be."""

    def can_follow(self, layers: Sequence[int], removable: range) -> bool:
        """Return whether the result can be made of some layers, with all that cannot be removed."""

    def choose(self, scores: Sequence[float], removable: range) -> tuple[int, ...] | None:
        """Return the retained layers with the highest sum of scores; None if there are none."""


@dataclass(frozen=True)
class LayerOrder:
    """What the layers of a model are, and what those of a cut have to be.

    Args:
        kinds: What each layer of the model is, such as whether it sees all tokens.
        places: What each layer of the result has to be, in their order.
        required: Indices of the layers that the result has to have.
    """

    kinds: tuple[Any, ...]
    places: tuple[Any, ...]
    required: frozenset[int] = frozenset()

    def can_follow(self, layers: Sequence[int], removable: range) -> bool:
        """Return whether the result can be made of some layers, with all that cannot be removed.

        Args:
            layers: Layers of the model that are left, ascending, with all that cannot be removed.
            removable: The layers that can be removed.
        """
        if self.required:
            return self.choose([0.0] * len(self.kinds), removable, layers) is not None
        ahead = [layer for layer in layers if layer < removable.start]
        behind = [layer for layer in layers if layer >= removable.stop]
        first, middle = len(ahead), len(self.places) - len(behind)
        if middle < first or [self.kinds[layer] for layer in (*ahead, *behind)] != [
            *self.places[:first],
            *self.places[middle:],
        ]:
            return False
        rest = iter([self.kinds[layer] for layer in layers if layer in removable])
        return all(place in rest for place in self.places[first:middle])  # `in` goes on behind the last match

    def choose(
        self, scores: Sequence[float], removable: range, among: Sequence[int] | None = None
    ) -> tuple[int, ...] | None:
        """Return the retained layers that come in this order with the highest sum of scores; None if none do.

        Args:
            scores: Importance of each layer; higher is better.
            removable: The layers that can be removed.
            among: The layers that are left; None for all.
        """
        total, count = len(self.kinds), len(self.places)
        worst = -math.inf
        # best[layer][n]: the highest sum of n layers that are retained of those before `layer`. Among equals the
        # first layers are removed, as where there is no order.
        best = [[0.0] + [worst] * count]
        for layer in range(total):
            last = best[-1]
            left = among is None or layer in among
            retained = [worst] + [
                before + scores[layer] if left and self.kinds[layer] == place else worst
                for before, place in zip(last, self.places, strict=False)
            ]
            skipped = last if layer in removable and layer not in self.required else [worst] * (count + 1)
            best.append([max(pair) for pair in zip(retained, skipped, strict=True)])
        if best[-1][count] == worst:
            return None
        found: list[int] = []
        n = count
        for layer in reversed(range(total)):
            is_place = n > 0 and self.kinds[layer] == self.places[n - 1]
            if is_place and best[layer][n - 1] + scores[layer] == best[layer + 1][n]:
                found.append(layer)
                n -= 1
        return tuple(reversed(found))
