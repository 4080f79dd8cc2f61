"""The base as a GGUF file of 16 bits: from its header, the bytes of any smaller model's file follow exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from ..architectures.binding import Binding
from ..architectures.description import ROWS
from ..architectures.expressions import axis_length
from ..edge.gguf_file import HeaderValue, header_values
from ..edge.gguf_quantizations import EMBEDDING, HEAD, TENSOR_TYPES, stored_as
from ..edge.tensor_names import gguf_names
from ..errors import RequestError
from .layout import FileTensor, KeptTokens, Layout, Tensors
from .probe_weights import ALIGNMENT

_STRING = 8
"""Bytes before a string: its length."""

TOKENS, KINDS = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
SCORES, MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.merges"
PRE_TOKENIZER = "tokenizer.ggml.pre"

_SIZE_LABEL = "general.size_label"

_VERSION = "general.quantization_version"
"""What a file with types of its own says, and one of the converter may leave out."""


@dataclass(frozen=True, kw_only=True)
class Template(Layout):
    """The base's GGUF file of 16 bits, without the weights; sizes are in the file's order, rows first.

    Args:
        path: The file.
        architecture: Its architecture, as llama.cpp names it.
        values_end: Bytes of the header before the entries of tensors.
        values: The header's values.
        pre_tokenizer_once_cut: Name of the pre-tokenizer in files of a smaller vocabulary; None for the base's.
    """

    path: Path
    architecture: str
    values_end: int
    values: tuple[HeaderValue, ...] = field(repr=False)
    pre_tokenizer_once_cut: str | None = None

    def value(self, key: str, default: Any = None) -> Any:
        """Return a value of the header.

        Args:
            key: Its key.
            default: What to return where there is none.
        """
        return next((entry.value for entry in self.values if entry.key == key), default)

    @cached_property
    def tokens(self) -> Sequence[str]:
        """The tokens of the base."""
        found: Sequence[str] = self.value(TOKENS, ())
        return found

    @cached_property
    def merges(self) -> Sequence[str]:
        """Its merges; none where the tokenizer has none."""
        found: Sequence[str] = self.value(MERGES, ())
        return found

    @cached_property
    def own_tokenizer(self) -> int:
        """Bytes of the base's vocabulary in the header."""
        return self.tokenizer_bytes(self.tokens, self.merges)

    def tokenizer_bytes(self, tokens: Sequence[str], merges: Sequence[str]) -> int:
        """Return the bytes of a vocabulary in the header: its tokens, their kinds and scores, and its merges.

        Args:
            tokens: Its tokens.
            merges: Its merges.
        """
        each = _STRING + 4 + (0 if self.value(SCORES) is None else 4)
        strings = sum(len(token.encode("utf-8", "surrogatepass")) for token in tokens)
        pairs = sum(_STRING + len(merge.encode("utf-8", "surrogatepass")) for merge in merges)
        return strings + each * len(tokens) + pairs

    @property
    def renamed_pre_tokenizer(self) -> str | None:
        """Name of the pre-tokenizer in files of a smaller vocabulary; None where files name none."""
        own: str | None = self.value(PRE_TOKENIZER)
        return None if own is None else self.pre_tokenizer_once_cut or own

    @property
    def holds_vocabulary(self) -> bool:
        """Whether the file holds the tokenizer as well as the weights: GGUF does."""
        return True

    def vocabulary_bytes(self, kept: KeptTokens) -> int:
        """Return the bytes that a smaller vocabulary takes in the header."""
        tokens = [self.tokens[row] for row in kept.rows]
        ranks = kept.merges if kept.merges is not None and self.merges else ()  # files of pieces have no merges
        renamed = len(self.renamed_pre_tokenizer or "") - len(self.value(PRE_TOKENIZER, ""))
        return self.tokenizer_bytes(tokens, [self.merges[rank] for rank in ranks]) + renamed

    def dims(self, tensor: FileTensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return a tensor's sizes in a smaller model's file, rows first."""
        if tensor.source is None:
            return tensor.dims
        lengths = self.lengths(tensor.source, sizes)
        return lengths if self.binding.tensors[tensor.source].transposed else lengths[::-1]

    def size_label(self, tensors: Tensors) -> str:
        """Return how a file says how large its model is, such as `135M`.

        Args:
            tensors: What `in_shape` gives for its shape.
        """
        import gguf

        return str(gguf.size_label(sum(prod(dims) for _, dims in tensors), 0, 0, 0))

    def general(self, shape: Mapping[str, int]) -> list[HeaderValue]:
        """Return what the file of a smaller model says in general: what the base's says, and how large it is.

        llama.cpp's converter makes up a name's parts from the size, so that headers would differ in length.

        Args:
            shape: The smaller model's sizes, by config key.
        """
        label = self.size_label(self.in_shape(shape))
        return [
            replace(entry, value=label) if entry.key == _SIZE_LABEL else entry
            for entry in self.values
            if entry.key.startswith("general.")
        ]

    def nbytes(
        self,
        shape: Mapping[str, int],
        types: Mapping[str, str],
        tokenizer: int | None = None,
        tensors: Tensors | None = None,
    ) -> int:
        """Return the bytes of a smaller model's file: header, alignment and weights."""
        tensors = self.in_shape(shape) if tensors is None else tensors
        header = self.values_end
        if tokenizer is not None:
            header += tokenizer - self.own_tokenizer
        if types and self.value(_VERSION) is None:
            header += _STRING + len(_VERSION) + 4 + 4
        header += sum(_info_bytes(tensor) for tensor, _ in tensors)
        label = self.value(_SIZE_LABEL)
        if label is not None and types:
            header += len(self.size_label(tensors)) - len(label)
        data = sum(_aligned(tensor_bytes(dims, types.get(tensor.name, tensor.type))) for tensor, dims in tensors)
        return _aligned(header) + data


def _info_bytes(tensor: FileTensor) -> int:
    """Return the bytes of a tensor's entry in the header: name, sizes, type and offset."""
    return _STRING + len(tensor.name.encode()) + 4 + 8 * len(tensor.dims) + 4 + 8


def tensor_bytes(dims: Sequence[int], type_name: str) -> int:
    """Return the bytes of a tensor's weights.

    Args:
        dims: Its sizes in the file's order, rows first.
        type_name: Name of the requested type; rows that do not fit it are stored as its fallback.
    """
    row = dims[0] if dims else 1
    return stored_as(row, TENSOR_TYPES[type_name]).size(prod(dims))


def head_name(tensors: Sequence[FileTensor]) -> str:
    """Return the name of the tensor that gives the logits.

    Args:
        tensors: The tensors of a GGUF file.
    """
    return HEAD if any(tensor.name == HEAD for tensor in tensors) else EMBEDDING


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def read_template(path: Path, binding: Binding, pre_tokenizer_once_cut: str | None = None) -> Template:
    """Read the base's file of 16 bits.

    Args:
        path: The file, as llama.cpp's converter wrote it.
        binding: The checkpoint that it was made from.
        pre_tokenizer_once_cut: Name of the pre-tokenizer in files of a smaller vocabulary; None for the base's.

    Raises:
        RequestError: The file's tensors are not those of the checkpoint: llama.cpp stores the architecture otherwise.
    """
    import gguf

    reader = gguf.GGUFReader(path)

    architecture = str(reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
    names = {translated: name for name, translated in gguf_names(binding, architecture).items()}
    tensors = []
    for tensor in reader.tensors:
        source = names.get(tensor.name)
        bound = None if source is None else binding.tensors[source]
        parts = tensor.name.split(".")
        layer = int(parts[1]) if parts[0] == "blk" else None
        dims = tuple(int(size) for size in tensor.shape)
        if bound is not None and prod(dims) != prod(axis_length(axis, binding.sizes) for axis in bound.axes):
            source = None
        stored = tensor.tensor_type.name.lower()
        # What the converter writes in f32 keeps that.
        is_matrix = stored in ("f16", "bf16") and len(dims) > 1
        tensors.append(FileTensor(tensor.name, source, dims, stored, layer, is_matrix))
    template = Template(
        path=path,
        architecture=architecture,
        binding=binding,
        tensors=tuple(tensors),
        embedding=EMBEDDING,
        head=head_name(tensors),
        values_end=int(reader.tensors[0].field.offset),
        values=tuple(header_values(reader)),
        pre_tokenizer_once_cut=pre_tokenizer_once_cut,
    )
    _check(template)
    return template


def _check(template: Template) -> None:
    """Check that the file's tensors are understood: every matrix is one of the checkpoint, of the expected sizes."""
    binding = template.binding
    for tensor in template.tensors:
        if tensor.is_matrix and (tensor.source is None or template.dims(tensor, binding.sizes) != tensor.dims):
            raise RequestError(
                f"llama.cpp stores {tensor.name} of {binding.description.model_type} otherwise than the checkpoint, "
                "so the size of a smaller file cannot be computed; shrink and export the model by hand"
            )
    size = template.path.stat().st_size
    expected = template.nbytes(binding.shape, {})
    if size != expected:
        raise RequestError(
            f"a file of this model would be expected to have {expected:,} bytes, and llama.cpp's converter writes "
            f"{size:,}; shrink and export the model by hand"
        )
    if template.tokens and len(template.tokens) != binding.shape[ROWS]:
        raise RequestError(
            f"the file names {len(template.tokens):,} tokens, and the model has {binding.shape[ROWS]:,} rows"
        )
