"""A recipe: the shape of a smaller model, and the type of each of its matrices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..architectures.description import LAYERS, ROWS
from ..edge.gguf_quantizations import PROGRAM_TYPES, TENSOR_TYPES, fitting_type, plain_type
from ..errors import ShapeError

if TYPE_CHECKING:
    from .layout import Layout

QUERY_HEADS = "num_attention_heads"
"""The dimension that follows the KV groups."""


HEAD_TYPE = "q8_0"
"""The type that plain files have for the matrix that gives the logits."""


def priced_types(types: Sequence[str]) -> tuple[str, ...]:
    """Return the types whose costs are asked for: those to choose from, and that of a plain file's head.

    Args:
        types: Names of the types to choose from.
    """
    quantized = any(TENSOR_TYPES[name].block > 1 for name in types)
    return (*types, HEAD_TYPE) if quantized and HEAD_TYPE not in types else tuple(types)


def uniform_types(
    layout: Layout, type_name: str, types: Sequence[str], shape: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Return the types of a file in one type; a matrix whose rows do not fit it has the next finer one to choose from.

    Args:
        layout: The base's file.
        type_name: Name of the type.
        types: Names of the types to choose from.
        shape: The sizes by config key; None for the base's.

    Raises:
        ShapeError: The rows of a matrix fit none of them.
    """
    found = {}
    for tensor, dims in layout.in_shape(layout.binding.shape if shape is None else shape):
        if tensor.is_matrix:
            fitting = fitting_type(dims[0], type_name, types)
            if fitting is None:
                raise ShapeError(
                    f"the rows of {tensor.name} have {dims[0]:,} weights, which blocks of 256 do not divide: none of "
                    f"{', '.join(dict.fromkeys((type_name, *types)))} can store them; name q8_0, q5_0 or q4_0 as well"
                )
            found[tensor.name] = fitting
    return found


def plain_types(layout: Layout, type_name: str, types: Sequence[str] = ()) -> dict[str, str]:
    """Return the types of a file that `export --quantization` writes.

    Of a type that `llama-quantize` alone writes, it is the file of this type, the head in q8_0 as in the others.

    Args:
        layout: The base's file.
        type_name: Name of the type.
        types: Names of the types to choose from, for matrices whose rows do not fit it.
    """
    found = {name: plain_type(name, layout.matrices, type_name) for name in layout.matrices}
    if type_name in PROGRAM_TYPES:
        found = {**uniform_types(layout, type_name, types), layout.head: found[layout.head]}
    return found


@dataclass(frozen=True)
class Recipe:
    """How a smaller model is made.

    Args:
        shape: Its sizes by config key.
        types: Name of the type of each matrix, by its name in the smaller model's file.
        within: Name of the larger model that it is a part of (see `Maker.name`); empty for the base.
        nearest: Whether matrices have the nearest values, where a search rounds otherwise.
    """

    shape: Mapping[str, int]
    types: Mapping[str, str]
    within: str = ""
    nearest: bool = False

    @property
    def key(self) -> str:
        """A short name: the same recipe has the same one."""
        from ..core.digest import digest

        inside = {key: value for key, value in (("within", self.within), ("nearest", self.nearest)) if value}
        return digest({"shape": dict(self.shape), "types": dict(self.types), **inside})[:12]

    @property
    def is_quantized(self) -> bool:
        """Whether any matrix loses something by its type: whether weights share scales in it."""
        return any(TENSOR_TYPES[name].block > 1 for name in set(self.types.values()))

    def changes(self, base: Mapping[str, int]) -> dict[str, int]:
        """Return the sizes that are not the base's.

        Args:
            base: The base's sizes.
        """
        return {key: size for key, size in self.shape.items() if size != base[key]}

    def describe(self, base: Mapping[str, int]) -> str:
        """Return the recipe in a few words.

        Args:
            base: The base's sizes.
        """
        words = {ROWS: "rows", LAYERS: "layers", "intermediate_size": "neurons", "num_key_value_heads": "KV groups"}
        parts = [f"{size:,} {words[key]}" for key, size in self.changes(base).items() if key in words]
        used = Counter(self.types.values())
        named = "+".join(name for name, _ in used.most_common())
        return f"{named}, {', '.join(parts)}" if parts else f"{named}, unpruned"
