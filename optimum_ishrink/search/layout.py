"""What files of a model's shapes hold: their tensors with sizes, and from them the bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..architectures.binding import Binding
from ..architectures.expressions import axis_length


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the base's file.

    Args:
        name: What the file calls it.
        source: What the checkpoint calls it; None where a converter made it from several, or from the config.
        dims: Its sizes, the length of a row first.
        type: Name of its type in the base's file.
        layer: Its layer; None outside the layers.
        is_matrix: Whether its type is that of a recipe; vectors have their own.
    """

    name: str
    source: str | None
    dims: tuple[int, ...]
    type: str
    layer: int | None
    is_matrix: bool


Tensors = Sequence[tuple[FileTensor, tuple[int, ...]]]
"""The tensors of a smaller model's file with their sizes."""


@dataclass(frozen=True)
class KeptTokens:
    """A smaller vocabulary.

    Args:
        rows: The base's rows that stay, ascending.
        merges: The ranks of the base's merges that stay, ascending; None where it has none.
    """

    rows: Sequence[int]
    merges: Sequence[int] | None


@dataclass(frozen=True, kw_only=True)
class Layout(ABC):
    """The base's file, without the weights.

    Args:
        binding: The checkpoint that it holds.
        tensors: Its tensors, in the file's order.
        embedding: Name of the embedding.
        head: Name of the head; the embedding's where that is the head, too.
    """

    binding: Binding
    tensors: tuple[FileTensor, ...]
    embedding: str
    head: str

    @cached_property
    def matrices(self) -> tuple[str, ...]:
        """Names of the matrices: the tensors whose type is that of a recipe."""
        return tuple(tensor.name for tensor in self.tensors if tensor.is_matrix)

    @abstractmethod
    def dims(self, tensor: FileTensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return a tensor's sizes in a smaller model's file, the length of a row first.

        Args:
            tensor: The tensor.
            sizes: The smaller model's sizes, as `Binding.resized` gives them.
        """

    def lengths(self, source: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return a tensor's sizes in a smaller checkpoint.

        Args:
            source: What the checkpoint calls it.
            sizes: The smaller model's sizes, as `Binding.resized` gives them.
        """
        return tuple(axis_length(axis, sizes) for axis in self.binding.tensors[source].axes)

    def in_shape(self, shape: Mapping[str, int]) -> list[tuple[FileTensor, tuple[int, ...]]]:
        """Return the tensors of a smaller model's file with their sizes.

        Which layers stay does not matter for the file's size: as many of the first ones are taken.

        Args:
            shape: The smaller model's sizes, by config key.
        """
        sizes = self.binding.resized(shape)
        return [
            (tensor, self.dims(tensor, sizes))
            for tensor in self.tensors
            if tensor.layer is None or tensor.layer < sizes["layers"]
        ]

    @abstractmethod
    def nbytes(
        self,
        shape: Mapping[str, int],
        types: Mapping[str, str],
        tokenizer: int | None = None,
        tensors: Tensors | None = None,
    ) -> int:
        """Return the bytes of a smaller model's file.

        Args:
            shape: The smaller model's sizes, by config key.
            types: Name of the type of each matrix, by its name in the file.
            tokenizer: Bytes of its vocabulary in the file (see `vocabulary_bytes`); the base's by default.
            tensors: What `in_shape` gives for the shape, where that is known.
        """

    @property
    @abstractmethod
    def holds_vocabulary(self) -> bool:
        """Whether the file holds the tokenizer as well as the weights."""

    @abstractmethod
    def vocabulary_bytes(self, kept: KeptTokens) -> int:
        """Return the bytes that a smaller vocabulary takes in the file; 0 where it holds none.

        Args:
            kept: The vocabulary.
        """
