"""The shapes that a search considers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import product

from ..architectures.binding import Binding
from ..architectures.description import GROUPS, LAYERS, NEURONS, ROWS
from ..edge.gguf_quantizations import PLAIN_BLOCK, TENSOR_TYPES
from ..planning.row_choices import RowChoices
from ..planning.runtime_check import RuntimeCheck
from .recipe import QUERY_HEADS

K_MULTIPLE = 256
"""Weights in a block of llama.cpp's K-quants: MLP widths that are multiples of it are considered as well."""

STEPS = 16
"""Sizes of a dimension that are considered, at most: finer ones differ by less than the prediction's error."""

_MOST_REMOVED = {ROWS: 0.8, LAYERS: 0.4, NEURONS: 0.6, GROUPS: 0.7}
"""Shares of dimensions that are removed at most: what is beyond is not a language model without long training."""


def dimension_sizes(
    binding: Binding, key: str, *, rows: RowChoices | None, protected: int, types: Collection[str] = ()
) -> list[int]:
    """Return the sizes of one dimension, descending from the model's own.

    Args:
        binding: The model.
        key: Config key of the dimension.
        rows: The sizes that the vocabulary can have; None where it stays.
        protected: Layers that cannot be removed.
        types: Names of the types to choose from: some need MLP widths that are multiples of 256.
    """
    size = binding.shape[key]
    if binding.description.dimensions[key].fixed:
        return [size]
    least = size * (1 - _MOST_REMOVED.get(key, 0.0))
    if key == ROWS:
        if rows is None:
            return [size]
        least = max(least, rows.least)
        step = -(-max(1, (size - rows.least) // STEPS) // rows.multiple) * rows.multiple
        top = rows.free // rows.multiple * rows.multiple
        return [size, *(each for each in range(top, 0, -step) if each >= least and each != size)]
    if key == LAYERS:
        return [each for each in range(size, 0, -1) if each >= max(least, protected, 1)]
    if key == NEURONS:
        step = -(-max(1, size // STEPS) // PLAIN_BLOCK) * PLAIN_BLOCK
        widths = set(range(size // step * step, 0, -step))
        if any(TENSOR_TYPES[name].block == K_MULTIPLE for name in types):
            widths |= set(range(K_MULTIPLE, size, K_MULTIPLE))
        return [size, *(each for each in sorted(widths, reverse=True) if each >= least and each != size)]
    if key == GROUPS:
        return [each for each in range(size, 0, -1) if each >= least and binding.refusal({key: each}) is None]
    return [size]


def shapes(
    sizes: Mapping[str, Collection[int]], binding: Binding, runtime: RuntimeCheck | None = None
) -> Iterator[dict[str, int]]:
    """Yield every shape of given sizes that the architecture can express.

    Args:
        sizes: The sizes of each dimension; query heads follow their KV groups.
        binding: The model.
        runtime: What has to be able to run the shapes; None for PyTorch, which runs them all.
    """
    refused: dict[tuple[int, ...], bool] = {}
    keys = [key for key in binding.shape if key != QUERY_HEADS]
    group = binding.shape[QUERY_HEADS] // binding.shape[GROUPS]
    for values in product(*(sizes[key] for key in keys)):
        shape = dict(zip(keys, values, strict=True))
        shape[QUERY_HEADS] = shape[GROUPS] * group
        if runtime is not None:  # it looks at no rows
            inner = tuple(size for key, size in shape.items() if key != ROWS)
            if inner not in refused:
                refused[inner] = runtime.refusal(shape) is not None
            if refused[inner]:
                continue
        yield {key: shape[key] for key in binding.shape}
