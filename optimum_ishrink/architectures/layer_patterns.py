"""Which layers a cut of a model with layers of several kinds can have.

transformers' cache counts tokens at a layer with attention, so a hybrid needs one of these; a config class may demand
other kinds, too. And where a config holds a period in place of a list, as in 'every fourth layer, from the second on',
the retained layers have to come at even distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from ..errors import ShapeError
from .axes import layers_with
from .binding import Binding
from .description import GROUPS
from .layer_order import LayerOrder

_MOST_ORDERS = 400
"""Combinations of periods that are compared. Of more, those that change one of the model's periods are."""

Places = tuple[bool, ...]
"""For each layer, whether it is one of those that a period names."""


@dataclass(frozen=True)
class LayerPattern:
    """What the layers of a cut have to be.

    Args:
        count: Layers of the cut.
        needed: Kinds of which a layer has to stay, in words, and the layers of that kind.
        orders: Orders that the config can hold, of which one has to be met; empty where it can hold any.
    """

    count: int
    needed: tuple[tuple[str, frozenset[int]], ...] = ()
    orders: tuple[LayerOrder, ...] = ()

    def missing(self, layers: Sequence[int]) -> list[str]:
        """Return the kinds that are needed and that none of some layers is of."""
        return [kind for kind, those in self.needed if not those & set(layers)]

    def can_follow(self, layers: Sequence[int], removable: range) -> bool:
        """Return whether the result can be made of some layers, with all that cannot be removed.

        Args:
            layers: Layers of the model that are left, ascending, with all that cannot be removed.
            removable: The layers that can be removed.
        """
        if self.missing(layers):
            return False
        if self.orders:
            return any(order.can_follow(layers, removable) for order in self.orders)
        protected = [layer for layer in layers if layer not in removable]
        return len(self.missing(protected)) <= self.count - len(protected)

    def choose(self, scores: Sequence[float], removable: range) -> tuple[int, ...] | None:
        """Return the retained layers that come in this pattern with the highest sum of scores; None if none do.

        Args:
            scores: Importance of each layer; higher is better.
            removable: The layers that can be removed.
        """
        if not self.orders:
            return self._choose_any(scores, removable)
        best: tuple[float, tuple[int, ...]] | None = None
        for order in self.orders:
            layers = order.choose(scores, removable)
            if layers is not None and not self.missing(layers):
                total = sum(scores[layer] for layer in layers)
                if best is None or total > best[0]:
                    best = total, layers
        return None if best is None else best[1]

    def _choose_any(self, scores: Sequence[float], removable: range) -> tuple[int, ...] | None:
        """Return the highest scored layers with one of each kind that is needed; among equals the last ones."""
        total = len(scores)
        retained = {layer for layer in range(total) if layer not in removable}
        for kind, those in self.needed:
            if kind in self.missing(sorted(retained)):
                retained.add(max(those, key=lambda layer: (scores[layer], layer)))
        if len(retained) > self.count:
            return None
        rest = sorted(set(range(total)) - retained, key=lambda layer: (-scores[layer], -layer))
        return tuple(sorted({*retained, *rest[: self.count - len(retained)]}))


def layer_pattern(binding: Binding, count: int) -> LayerPattern | None:
    """Return what the layers of a cut have to be; None where any will do.

    Args:
        binding: The model.
        count: Layers of the cut.
    """
    total = binding.sizes["layers"]
    if count == total:
        return None
    needed = []
    attention = frozenset(layers_with(binding, GROUPS))
    if 0 < len(attention) < total:
        needed.append(("a layer with attention", attention))
    kinds = getattr(binding.config, "layer_types", None) or []
    for kind in binding.description.needed_kinds:
        needed.append((f"a {kind} layer", frozenset(layer for layer, found in enumerate(kinds) if found == kind)))
    needed += [(f"layer {layer}", frozenset({layer})) for layer in binding.required_layers]
    orders = _orders(binding, count)
    return LayerPattern(count, tuple(needed), orders) if needed or orders else None


def check_pattern(binding: Binding, count: int, removable: range) -> None:
    """Check that a depth can hold what the layers of a cut have to be.

    Args:
        binding: The model.
        count: Layers of the cut.
        removable: The layers that can be removed.

    Raises:
        ShapeError: It cannot; the message names the nearest depths that can.
    """
    if _fits(binding, count, removable):
        return
    pattern = layer_pattern(binding, count)
    assert pattern is not None
    total = binding.sizes["layers"]
    kinds = " and ".join(kind for kind, _ in pattern.needed)
    periods = ", ".join(key for pair in binding.description.periods for key in pair)
    wants = [f"it needs {kinds}" if kinds else "", f"{periods} can only hold even distances" if periods else ""]
    protected = total - len(removable)
    fits = [depth for depth in range(max(1, protected), total + 1) if _fits(binding, depth, removable)]
    near = [*[depth for depth in fits if depth < count][-1:], *[depth for depth in fits if depth > count][:1]]
    raise ShapeError(
        f"num_hidden_layers={count} cannot hold the layers of {binding.description.model_type} with the {protected} "
        f"that are protected: {', and '.join(want for want in wants if want)}; nearest num_hidden_layers: "
        f"{' or '.join(map(str, near))}; or protect others by keep_first_layers and keep_last_layers"
    )


def _fits(binding: Binding, count: int, removable: range) -> bool:
    pattern = layer_pattern(binding, count)
    return pattern is None or pattern.choose([0.0] * binding.sizes["layers"], removable) is not None


def examples(binding: Binding, count: int, removable: range) -> list[tuple[int, ...]]:
    """Return layers of a cut that come in its pattern, among the first ones and among the last ones.

    Args:
        binding: The model.
        count: Layers of the cut.
        removable: The layers that can be removed.
    """
    total = binding.sizes["layers"]
    pattern = layer_pattern(binding, count)
    if pattern is None:
        return [tuple(range(count)), tuple(range(total - count, total))]
    ranks = [float(layer) for layer in range(total)]
    found = [pattern.choose(scores, removable) for scores in (ranks[::-1], ranks)]
    return [layers for layers in found if layers is not None]


def period_changes(binding: Binding, layers: Sequence[int]) -> dict[str, int]:
    """Return the config keys of periods that change with the retained layers.

    Args:
        binding: The model.
        layers: Indices of the retained layers.

    Raises:
        ShapeError: The layers that a period names are not at even distances.
    """
    changes: dict[str, int] = {}
    for keys in binding.description.periods:
        now = tuple(getattr(binding.config, key) for key in keys)
        named = [layer % now[0] == now[1] for layer in layers]
        ways = sorted(_periods(len(layers), now[0]).items(), key=lambda way: way[1] != now)
        found = next((way for places, way in ways if list(places) == named), None)
        if found is None:
            removed = [layer for layer in range(binding.sizes["layers"]) if layer not in set(layers)]
            raise ShapeError(
                f"num_hidden_layers={len(layers)} cannot be written for {binding.description.model_type} with layers "
                f"{', '.join(map(str, removed))} removed: {keys[0]} and {keys[1]} can only hold even distances, and "
                f"the layers that they name would be {', '.join(str(i) for i, one in enumerate(named) if one)}; "
                "choose layers with layer_selection one-shot or greedy, which keep to it"
            )
        changes.update({key: value for key, value, old in zip(keys, found, now, strict=True) if value != old})
    return changes


def _periods(count: int, period: int) -> dict[Places, tuple[int, int]]:
    """Return every pattern that a period and an offset can name among some layers, and the two.

    Args:
        count: Number of layers.
        period: The model's period: among those that name the same layers, the nearest to it is returned.
    """
    found: dict[Places, tuple[int, int]] = {}
    longest = max(count + 1, period)
    for step in sorted(range(1, longest + 1), key=lambda step: abs(step - period)):
        for offset in range(step):
            found.setdefault(tuple(layer % step == offset for layer in range(count)), (step, offset))
    return found


def _orders(binding: Binding, count: int) -> tuple[LayerOrder, ...]:
    """Return the orders of layers that the config's periods can hold; none where it has no periods."""
    if not binding.description.periods:
        return ()
    total, anywhere = binding.sizes["layers"], range(binding.sizes["layers"])
    kinds: list[Places] = []
    choices: list[list[Places]] = []
    near: list[list[Places]] = []
    for keys in binding.description.periods:
        period, offset = (getattr(binding.config, key) for key in keys)
        named = tuple(layer % period == offset for layer in range(total))
        found = _periods(count, period)
        kinds.append(named)
        choices.append([places for places in found if LayerOrder(named, places).can_follow(anywhere, anywhere)])
        near.append([places for places in choices[-1] if found[places][0] == period])
    if prod(map(len, choices)) > _MOST_ORDERS:
        mixed = [[*near[:i], choices[i], *near[i + 1 :]] for i in range(len(choices))]
        combinations = dict.fromkeys(combination for lists in mixed for combination in product(*lists))
    else:
        combinations = dict.fromkeys(product(*choices))
    together = tuple(zip(*kinds, strict=True))
    return tuple(LayerOrder(together, tuple(zip(*places, strict=True))) for places in combinations)
