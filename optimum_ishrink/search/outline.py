"""What a model's GGUF file would look like, from its config alone: no weights are read, and no converter runs."""

from __future__ import annotations

from math import prod
from pathlib import Path

from ..architectures.binding import Binding
from ..architectures.description import HEADS, INDEX
from ..architectures.expressions import axis_length
from ..edge.gguf_quantizations import EMBEDDING, HEAD
from ..report.search import kind_of
from .layout import FileTensor
from .template import Template, head_name

_TOKEN_BYTES = 36
"""Bytes that a token takes in a header on average: its string, its kind and its merge; those of SmolLM2."""

_HEADER = 10_000
"""Bytes of a header without the vocabulary: settings, and a chat template."""


def outline(binding: Binding) -> Template:
    """Return the template of a model whose file was not written: sizes as expected, and no values.

    Args:
        binding: The model.
    """
    tensors = []
    for name, bound in binding.tensors.items():
        dims = tuple(axis_length(axis, binding.sizes) for axis in bound.axes)
        if 0 in dims:
            continue
        if bound.counts("vocab") and len(dims) > 1:
            translated = HEAD if name in HEADS else EMBEDDING
        elif bound.layer is None:
            translated = name
        else:
            translated = f"blk.{bound.layer}.{_after_layer(name)}"
        matrix = len(dims) > 1 and "norm" not in name.split(".")[-2]
        ordered = dims if bound.transposed else dims[::-1]
        tensors.append(FileTensor(translated, name, ordered, "bf16" if matrix else "f32", bound.layer, matrix))
    if getattr(binding.config, "tie_word_embeddings", False):
        tensors = [tensor for tensor in tensors if tensor.name != HEAD]
    return Template(
        path=Path(),
        architecture=binding.description.model_type,
        binding=binding,
        tensors=tuple(tensors),
        embedding=EMBEDDING,
        head=head_name(tensors),
        values_end=_HEADER + _TOKEN_BYTES * binding.sizes["vocab"],
        values=(),
    )


def _after_layer(name: str) -> str:
    """Return what follows a layer's index in a tensor's name."""
    return INDEX.split(name, maxsplit=1)[-1].lstrip(".")


def weights_in(template: Template) -> dict[str, int]:
    """Return how many weights each kind of matrix has.

    Args:
        template: The model's file.
    """
    found: dict[str, int] = {}
    for tensor in template.tensors:
        if tensor.is_matrix:
            found[kind_of(tensor.name)] = found.get(kind_of(tensor.name), 0) + prod(tensor.dims)
    return found
