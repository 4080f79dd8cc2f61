"""What a search measures before it chooses: each type in each kind of matrix, and each dimension at a few sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ..architectures.description import GROUPS, LAYERS, NEURONS, ROWS
from ..core.progress import progress_bar
from ..edge.gguf_quantizations import TENSOR_TYPES
from ..planning.row_choices import RowChoices
from ..report.search import kind_of
from .damage import PRIORS, Curve, TypeDamage, fit_curve, removed_share
from .making import Maker
from .recipe import QUERY_HEADS, plain_types
from .store import Store
from .template import Template
from .text_divergence import Divergence, Reference
from .weights import StoredWeights

MOST_BLOCKS = 10
"""Blocks of neighbouring layers whose share of the damage is measured together: neighbours' damages are alike, and
what they do together counts."""

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
        template: The base's file.
        maker: Makes checkpoints.
        reference: The text to choose on, with the base's predictions.
        store: Where measurements are stored.
    """

    template: Template
    maker: Maker
    reference: Reference
    store: Store

    def stored_weights(self, model: Any) -> StoredWeights:
        """Return a model's matrices as a file can hold them.

        Args:
            model: The base, or a checkpoint that was made from it.
        """
        tensors = self.template.binding.tensors
        parameters = dict(model.named_parameters())
        transposed = [name for name, tensor in tensors.items() if tensor.transposed]
        names = {
            tensor.name: tensor.source
            for tensor in self.template.tensors
            if tensor.is_matrix and tensor.source is not None and tensor.source in parameters
        }
        return StoredWeights(model, names, transposed)

    def divergence(self, name: str, shape: Mapping[str, int], types: Mapping[str, str]) -> Divergence:
        """Measure a shape with its matrices as a file holds them, or return what is stored.

        Args:
            name: Name of the measurement.
            shape: The sizes by config key. The checkpoint is made and loaded only where it has to be measured.
            types: Names of types by the matrix's name in the file; the others keep their bits.
        """

        def measure() -> dict[str, Any]:
            made = self.maker.make(shape)
            with self.stored_weights(self.maker.load(made)).stored(types) as stored:
                if made.pair is None:
                    return asdict(self.reference.measure(stored))
                return asdict(self.reference.measure_trimmed(stored, made.pair))

        return Divergence(**self.store.measured(name, measure))

    def of_shape(self, shape: Mapping[str, int]) -> Divergence:
        """Measure a shape in 16 bits, or return what is stored.

        Args:
            shape: The sizes by config key.
        """
        return self.divergence(f"shape {self.maker.name(shape)}", shape, {})


def measure_types(measuring: Measuring, types: Sequence[str]) -> tuple[TypeDamage, dict[str, Divergence]]:
    """Measure what types cost in the base: by kind of matrix, by block of layers, and all together.

    Args:
        measuring: The search.
        types: Names of the types to choose from.

    Returns:
        What the types cost, and the divergence of the unpruned model as it is exported in each type.
    """
    store = measuring.store
    base = measuring.template.binding.shape
    matrices = [tensor for tensor in measuring.template.tensors if tensor.is_matrix]
    bits = {name: TENSOR_TYPES[name].nbytes / TENSOR_TYPES[name].block for name in types}
    coarsest = min(types, key=lambda name: bits[name])
    quantized = [name for name in types if TENSOR_TYPES[name].block > 1]
    layers = measuring.template.binding.sizes["layers"]
    blocks = _blocks(layers)
    kinds = list(dict.fromkeys(kind_of(tensor.name) for tensor in matrices))
    inside = {kind: [tensor.name for tensor in matrices if kind_of(tensor.name) == kind] for kind in kinds}
    if not quantized:
        return TypeDamage({}, [1 / layers] * layers, {}), {}
    with progress_bar("what each type costs", len(kinds) + len(blocks) + 2 * len(quantized)) as advance:
        errors = store.measured("errors", lambda: _errors(measuring, inside, quantized))
        by_kind = {}
        for kind in kinds:
            found = measuring.divergence(f"type {coarsest} in {kind}", base, dict.fromkeys(inside[kind], coarsest))
            by_kind[kind] = found.value
            advance(1)
        by_block = []
        for number, block in enumerate(blocks):
            chosen = {tensor.name: coarsest for tensor in matrices if tensor.layer in block}
            found = measuring.divergence(f"type {coarsest} in block {number} of {len(blocks)}", base, chosen)
            by_block.append(found.value)
            advance(1)
        whole, plain = {}, {}
        for name in quantized:
            every = dict.fromkeys(measuring.template.matrices, name)
            whole[name] = measuring.divergence(f"type {name} everywhere", base, every)
            plain[name] = measuring.divergence(f"plain {name}", base, plain_types(measuring.template, name))
            advance(2)
    scaled = {
        kind: {name: errors[kind][name] / max(errors[kind][coarsest], 1e-30) for name in quantized} for kind in kinds
    }
    total = sum(by_block) or 1.0
    shares = [value / total / len(block) for value, block in zip(by_block, blocks, strict=True) for _ in block]
    found_types = TypeDamage(by_kind, shares, scaled)
    together = whole[coarsest].value / max(sum(by_kind.values()), 1e-9)
    # Squared errors say how types compare within a matrix; how the model takes them is measured for all together.
    for name in quantized:
        expected = together * sum(found_types.of_kind(kind, name) for kind in kinds)
        factor = whole[name].value / max(expected, 1e-12)
        for kind in kinds:
            scaled[kind][name] *= factor
    return TypeDamage(by_kind, shares, scaled, together), plain


def _blocks(layers: int) -> list[list[int]]:
    count = min(layers, MOST_BLOCKS)
    ends = [round(number * layers / count) for number in range(count + 1)]
    return [list(range(start, end)) for start, end in pairwise(ends)]


def _errors(
    measuring: Measuring, inside: Mapping[str, Sequence[str]], types: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the squared error of each type in each kind of matrix."""
    weights = measuring.stored_weights(measuring.maker.session.model)
    return {
        kind: {name: sum(weights.error(matrix, name) for matrix in matrices) for name in types}
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
    """Measure shapes in which one dimension changes, in 16 bits after closed-form repair.

    Args:
        measuring: The search.
        levels: The size that changes in each.

    Returns:
        Whole shapes with their divergences.
    """
    base, found = measuring.template.binding.shape, []
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
