"""A recipe: the shape of a smaller model, and the type of each of its matrices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..architectures.description import LAYERS, ROWS
from ..edge.gguf_quantizations import plain_type

if TYPE_CHECKING:
    from .template import Template

QUERY_HEADS = "num_attention_heads"
"""The dimension that follows the KV groups."""


def plain_types(template: Template, type_name: str) -> dict[str, str]:
    """Return the types of a file that `export --quantization` writes.

    Args:
        template: The base's file.
        type_name: Name of the type.
    """
    return {name: plain_type(name, template.matrices, type_name) for name in template.matrices}


@dataclass(frozen=True)
class Recipe:
    """How a smaller model is made.

    Args:
        shape: Its sizes by config key.
        types: Name of the type of each matrix, by its name in the smaller model's file.
    """

    shape: Mapping[str, int]
    types: Mapping[str, str]

    @property
    def key(self) -> str:
        """A short name: the same recipe has the same one."""
        from ..core.digest import digest

        return digest({"shape": dict(self.shape), "types": dict(self.types)})[:12]

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
