"""The base as a safetensors checkpoint: from its tensors, the bytes of any smaller one follow exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ..checkpoint.source import Source
from ..checkpoint.tensors import OutgoingTensor
from ..checkpoint.writing import weights_nbytes
from ..errors import RequestError
from ..planning.device_times import vocabulary_matrices
from .layout import FileTensor, KeptTokens, Layout, Tensors

DTYPES: Mapping[str, str] = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
"""Types of matrices that a checkpoint can run in, and what safetensors call them."""


@dataclass(frozen=True, kw_only=True)
class CheckpointLayout(Layout):
    """The base's weight files; names and dtypes are those of the checkpoint.

    Args:
        dtypes: What safetensors call the dtype of each tensor, by name.
    """

    dtypes: Mapping[str, str]

    @property
    def holds_vocabulary(self) -> bool:
        """Whether the files hold the tokenizer as well as the weights: safetensors do not."""
        return False

    def vocabulary_bytes(self, kept: KeptTokens) -> int:
        """Return 0: the tokenizer has files of its own, which do not count."""
        return 0

    def dims(self, tensor: FileTensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return a tensor's sizes in a smaller checkpoint, the length of a row first."""
        return self.lengths(tensor.name, sizes)[::-1]

    def outgoing(self, tensors: Tensors) -> list[OutgoingTensor]:
        """Return what the files of a smaller model hold, without values.

        Args:
            tensors: What `in_shape` gives for its shape.
        """
        return [OutgoingTensor(tensor.name, self.dtypes[tensor.name], dims[::-1]) for tensor, dims in tensors]

    def nbytes(
        self,
        shape: Mapping[str, int],
        types: Mapping[str, str],
        tokenizer: int | None = None,
        tensors: Tensors | None = None,
    ) -> int:
        """Return the bytes of a smaller model's weight files: headers, alignment and weights.

        Tokenizer, config and the index of several files do not count. Types are not read: each tensor keeps its dtype.
        """
        return weights_nbytes(self.outgoing(self.in_shape(shape) if tensors is None else tensors))


def own_type(source: Source) -> str:
    """Return the type that a checkpoint's matrices have.

    Args:
        source: The checkpoint.

    Raises:
        RequestError: They have several, or one that no model computes in.
    """
    stored = sorted({tensor.dtype for tensor in source.tensors.values() if len(tensor.shape) > 1})
    found = [name for name, dtype in DTYPES.items() if [dtype] == stored]
    if not found:
        raise RequestError(
            f"the matrices of {source.display_name} are stored as {', '.join(stored)}; the runtime torch runs a "
            "checkpoint in the one dtype of its matrices, BF16, F16 or F32: save the model in one of these"
        )
    return found[0]


def checkpoint_layout(source: Source) -> CheckpointLayout:
    """Return the layout of a checkpoint. Reads the headers of its files.

    Args:
        source: The checkpoint.

    Raises:
        RequestError: Its matrices have no one dtype.
    """
    binding, own = source.binding, own_type(source)
    embedding, head = vocabulary_matrices(binding)
    tensors = []
    for name, bound in binding.tensors.items():
        info = source.tensors[name]
        is_matrix = len(info.shape) > 1 and prod(info.shape) > 0
        tensors.append(
            FileTensor(name, name, info.shape[::-1], own if is_matrix else info.dtype.lower(), bound.layer, is_matrix)
        )
    return CheckpointLayout(
        binding=binding,
        tensors=tuple(tensors),
        embedding=embedding,
        head=head,
        dtypes={name: info.dtype for name, info in source.tensors.items()},
    )
