"""What a search measures before it chooses: each type in each kind of matrix, and each dimension at a few sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ..architectures.description import GROUPS, LAYERS, NEURONS, ROWS
from ..core.progress import progress_bar
from ..edge.gguf_quantizations import TENSOR_TYPES, bits, fits
from ..edge.rounded_matrices import RoundedMatrices
from ..planning.row_choices import RowChoices
from ..report.search import kind_of
from .damage import PRIORS, Curve, TypeDamage, fit_curve, removed_share
from .layout import Layout
from .making import Made, Maker
from .recipe import QUERY_HEADS, plain_types, uniform_types
from .rounding import Rounding, matrix_parameters
from .store import Store
from .text_divergence import Divergence, Reference
from .weights import StoredWeights

MOST_BLOCKS = 10
"""Blocks of neighbouring layers whose share of the damage is measured together: neighbours' damages are alike, and
what they do together counts."""

_LEAST_REST = 0.1
"""Least share of what squared errors say that a type costs in some kinds, where what the others cost is subtracted."""

LEVELS: Mapping[str, tuple[float, ...]] = {
    ROWS: (0.2, 0.45),
    NEURONS: (0.125, 0.25),
    LAYERS: (0.07, 0.14),
    GROUPS: (0.34,),
}
"""Shares of dimensions that are measured: a small one, and one near the most that is useful."""


@dataclass(frozen=True)
class Measuring:
    """What the measurements of one search share.

    Args:
        layout: The base's file.
        maker: Makes checkpoints.
        reference: The text to choose on, with the base's predictions.
        store: Where measurements are stored.
        rounding: Rounds matrices for what they compute; None where they have the nearest values.
    """

    layout: Layout
    maker: Maker
    reference: Reference
    store: Store
    rounding: Rounding | None = None

    def stored_weights(self, model: Any, rounded: RoundedMatrices | None = None) -> StoredWeights:
        """Return a model's matrices as a file can hold them.

        Args:
            model: The base, or a checkpoint that was made from it.
            rounded: Matrices that are rounded already; the others have the nearest values.
        """
        names, transposed = matrix_parameters(self.layout, model)
        folder = self.maker.folder / "types" if model is self.maker.session.loaded else None
        return StoredWeights(model, names, transposed, rounded, folder)

    def divergence(self, name: str, made: Made, types: Mapping[str, str], *, nearest: bool = False) -> Divergence:
        """Measure a checkpoint with its matrices as a file holds them, or return what is stored.

        Args:
            name: Name of the measurement.
            made: The checkpoint, which is loaded where it has to be measured.
            types: Names of types by the matrix's name in the file; the others keep their bits.
            nearest: Whether matrices have the nearest values, where the search rounds otherwise.
        """

        def measure() -> dict[str, Any]:
            rounded = None
            if types and not nearest and self.rounding is not None:
                rounded = self.rounding.rounded(made, types)
            with self.stored_weights(self.maker.load(made), rounded).stored(types) as stored:
                if made.pair is None:
                    return asdict(self.reference.measure(stored))
                return asdict(self.reference.measure_trimmed(stored, made.pair))

        return Divergence(**self.store.measured(name, measure))

    def of_shape(self, shape: Mapping[str, int], within: str = "") -> Divergence:
        """Measure the checkpoint of a shape, not quantised, or return what is stored; then it is not made.

        Args:
            shape: The sizes by config key.
            within: Name of the larger model that it is a part of; empty for the base.
        """
        name = f"shape {self.maker.name(shape, within)}"
        if self.store.has(name):
            return Divergence(**self.store.value(name))
        return self.divergence(name, self.maker.make(shape, within), {})


def measure_types(measuring: Measuring, types: Sequence[str]) -> tuple[TypeDamage, dict[str, Divergence]]:
    """Measure what types cost in the base: by kind of matrix, by block of layers, and all together.

    Args:
        measuring: The search.
        types: Names of the types to choose from.

    Returns:
        What the types cost, and the divergence of the unpruned model as it is exported in each type.
    """
    store, layout = measuring.store, measuring.layout
    base = measuring.maker.make(layout.binding.shape)
    matrices = [tensor for tensor in layout.tensors if tensor.is_matrix]
    quantized = [name for name in types if TENSOR_TYPES[name].block > 1]
    layers = layout.binding.sizes["layers"]
    blocks = _blocks(layers)
    inside: dict[str, list[str]] = {}
    for tensor in matrices:
        inside.setdefault(kind_of(tensor.name), []).append(tensor.name)
    if not quantized:
        return TypeDamage({}, [1 / layers] * layers, {}), {}
    coarsest = min(types, key=bits)
    # Where rows do not fit a type, they have the next finer one that they fit.
    every = {name: uniform_types(layout, name, types) for name in quantized}
    lowest = every[coarsest]
    able = {kind_of(tensor.name): [name for name in quantized if fits(tensor.dims[0], name)] for tensor in matrices}
    with progress_bar("what each type costs", len(inside) + len(blocks) + 2 * len(quantized)) as advance:
        errors = store.measured("errors", lambda: _errors(measuring, inside, able))
        by_kind = {}
        for kind, names in inside.items():
            found = measuring.divergence(f"type {lowest[names[0]]} in {kind}", base, _only(lowest, names))
            by_kind[kind] = found.value
            advance(1)
        by_block = []
        for number, block in enumerate(blocks):
            chosen = _only(lowest, [tensor.name for tensor in matrices if tensor.layer in block])
            label = "+".join(dict.fromkeys(chosen.values()))
            found = measuring.divergence(f"type {label} in block {number} of {len(blocks)}", base, chosen)
            by_block.append(found.value)
            advance(1)
        whole, plain = {}, {}
        for name in quantized:
            whole[name] = measuring.divergence(f"type {name} everywhere", base, every[name])
            plain[name] = measuring.divergence(f"plain {name}", base, plain_types(layout, name, types), nearest=True)
            advance(2)
    scaled = {
        kind: {name: errors[kind][name] / max(errors[kind][lowest[names[0]]], 1e-30) for name in able[kind]}
        for kind, names in inside.items()
        if able[kind] and lowest[names[0]] in errors[kind]
    }
    total = sum(by_block) or 1.0
    shares = [value / total / len(block) for value, block in zip(by_block, blocks, strict=True) for _ in block]
    together = whole[coarsest].value / max(sum(by_kind.values()), 1e-9)
    found_types = TypeDamage(by_kind, shares, scaled, together)
    # Squared errors say how types compare within a matrix; how the model takes them is measured for all together.
    # A type that only some kinds fit comes last: what the others cost in theirs is known by then.
    for name in sorted(quantized, key=lambda each: -sum(each in of for of in scaled.values())):
        stored = {kind: every[name][names[0]] for kind, names in inside.items()}
        own = sum(found_types.of_kind(kind, name) for kind in inside if stored[kind] == name)
        others = sum(found_types.of_kind(kind, each) for kind, each in stored.items() if each != name)
        rest = whole[name].value - others
        factor = (max(rest, _LEAST_REST * own) if others else rest) / max(own, 1e-12)
        for kind in scaled:
            if name in scaled[kind]:
                scaled[kind][name] *= factor
    return found_types, plain


def _only(types: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return the types of some matrices."""
    return {name: types[name] for name in names}


def _blocks(layers: int) -> list[list[int]]:
    count = min(layers, MOST_BLOCKS)
    ends = [round(number * layers / count) for number in range(count + 1)]
    return [list(range(start, end)) for start, end in pairwise(ends)]


def _errors(
    measuring: Measuring, inside: Mapping[str, Sequence[str]], able: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Return the squared error of each type in each kind of matrix whose rows fit it."""
    rounded = None
    if measuring.rounding is not None:
        base = measuring.maker.make(measuring.layout.binding.shape)
        types = {matrix: able[kind] for kind, matrices in inside.items() for matrix in matrices}
        rounded = measuring.rounding.rounded_to_each(base, types)
    weights = measuring.stored_weights(measuring.maker.session.model, rounded)
    return {
        kind: {name: sum(weights.error(matrix, name) for matrix in matrices) for name in able[kind]}
        for kind, matrices in inside.items()
    }


def level_sizes(
    base: Mapping[str, int], sizes: Mapping[str, Sequence[int]], rows: RowChoices | None
) -> list[dict[str, int]]:
    """Return the shapes that are made to measure the curves: one dimension changes in each.

    Args:
        base: The base's sizes by config key.
        sizes: The sizes that each dimension can have.
        rows: The sizes that the vocabulary can have; None where it stays.
    """
    found = []
    for key, shares in LEVELS.items():
        smaller = [size for size in sizes.get(key, ()) if size < base[key]]
        if rows is not None and key == ROWS:
            smaller = [size for size in smaller if size < rows.free]
        chosen = (
            {min(smaller, key=lambda size: abs(1 - size / base[key] - share)) for share in shares} if smaller else ()
        )
        found += [{key: size} for size in sorted(chosen, reverse=True)]
    return found


def measure_levels(measuring: Measuring, levels: Sequence[Mapping[str, int]]) -> list[tuple[dict[str, int], float]]:
    """Measure shapes in which one dimension changes, not quantised, after closed-form repair.

    Args:
        measuring: The search.
        levels: The size that changes in each.

    Returns:
        Whole shapes with their divergences.
    """
    base, found = measuring.layout.binding.shape, []
    for changed in levels:
        shape = {**base, **changed}
        shape[QUERY_HEADS] = base[QUERY_HEADS] // base[GROUPS] * shape[GROUPS]
        found.append((shape, measuring.of_shape(shape).value))
        measuring.maker.remove(shape)
    return found


def fit_curves(
    base: Mapping[str, int],
    measured: Sequence[tuple[Mapping[str, int], float]],
    rows: RowChoices | None,
) -> dict[str, Curve]:
    """Fit the curve of each dimension to shapes in which it alone changes.

    Args:
        base: The base's sizes by config key.
        measured: Shapes with their divergences.
        rows: What a smaller vocabulary costs in tokens; None where it stays.
    """
    curves = {}
    for key, prior in PRIORS.items():
        points = []
        for shape, value in measured:
            changed = {name for name, size in shape.items() if size != base[name]} - {QUERY_HEADS}
            if changed == {key}:
                points.append((removed_share(base, key, shape[key], rows), value))
        curves[key] = fit_curve(points, prior)
    return curves
