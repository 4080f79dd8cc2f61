"""Which matrices can have zeros: those of the layers that multiply, except routers and gates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from ..architectures.axes import down_projection, stacked_experts
from ..architectures.binding import Binding, BoundTensor
from ..architectures.expressions import axis_length
from ..errors import RequestError, ShapeError
from ..report.sparsity import Pattern

_FEWEST, _NARROW = 8, 32
"""Matrices with fewer rows or columns than this, or than the hidden size divided by this, are gates: few weights that
decide much, such as one number for each head of a state-space layer."""

_ROUTER = "it is a router"


@dataclass(frozen=True)
class Matrix:
    """A matrix, or those of all experts of a layer in one tensor.

    Args:
        name: Name of the tensor.
        kind: Its name within a layer of a loaded model, `*` for an index.
        bound: What its axes count.
        transposed: Whether it stores (in, out).
    """

    name: str
    kind: str
    bound: BoundTensor
    transposed: bool

    @property
    def layer(self) -> int:
        """Index of its layer."""
        assert self.bound.layer is not None
        return self.bound.layer

    @property
    def is_stacked(self) -> bool:
        """Whether it holds the matrices of all experts."""
        return len(self.bound.axes) == 3

    def by_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Return its values as (out, in), or (experts, out, in): a view."""
        return values.transpose(-1, -2) if self.transposed else values

    def columns(self, sizes: Mapping[str, int]) -> int:
        """Return the length of a row at the given sizes."""
        return axis_length(self.bound.axes[-2 if self.transposed else -1], sizes)


def kind_of(bound: BoundTensor) -> str:
    """Return a tensor's name within its layer, `*` for an index.

    Args:
        bound: A tensor of a layer, as a loaded model has it.
    """
    parts = bound.parameter.removesuffix(".weight").split(".")
    inner = parts[parts.index(str(bound.layer)) + 1 :]
    return ".".join("*" if part.isdigit() else part for part in inner)


def find_matrices(
    model: Any, binding: Binding, sizes: Mapping[str, int] | None = None
) -> tuple[tuple[Matrix, ...], dict[str, str]]:
    """Return the matrices of a loaded model that can have zeros, and why others of its layers cannot.

    Args:
        model: The model, with or without weights.
        binding: Its binding.
        sizes: Sizes to judge them by; the model's own if None.

    Returns:
        The matrices in the order of the binding; and the kinds of tensors that are left out, with the reason.
    """
    sizes = binding.sizes if sizes is None else sizes
    parameters = dict(model.named_parameters())
    stacked = stacked_experts(binding, parameters)
    transposed = {name: value for group in stacked.values() for name, value in _layouts(group).items()}
    found, skipped = [], dict[str, str]()
    for name, bound in binding.in_memory.items():
        if bound.layer is None or len(bound.axes) < 2:
            continue
        kind = kind_of(bound)
        if name not in parameters:  # the name of the files; routers are told of by this one
            skipped |= {kind: _ROUTER} if _is_router(bound) else {}
        elif name in transposed:
            found.append(Matrix(name, kind, bound, transposed[name]))
        elif reason := _reason(model.get_submodule(name.rpartition(".")[0]), bound, sizes):
            skipped[kind] = reason
        else:
            found.append(Matrix(name, kind, bound, bound.transposed))
    return tuple(found), skipped


def _is_router(bound: BoundTensor) -> bool:
    whole = bound.expert is None and len(bound.axes) == 2 and bound.name.endswith(".weight")
    return whole and bound.counts("experts")


def _reason(module: Any, bound: BoundTensor, sizes: Mapping[str, int]) -> str | None:
    """Return why a tensor gets no zeros, or None if it can."""
    if _is_router(bound):
        return _ROUTER
    if not isinstance(module, (torch.nn.Linear, Conv1D)):
        return "it is no weight of a linear layer"
    least = min(axis_length(axis, sizes) for axis in bound.axes)
    is_gate = least < _FEWEST or least * _NARROW <= sizes.get("hidden", 0)
    return f"it is a gate: it has {least} rows or columns" if is_gate else None


def _layouts(stacked: Sequence[BoundTensor]) -> dict[str, bool]:
    """Return, for each tensor that holds the matrices of all experts, whether it stores (in, out)."""
    down, transposed = down_projection(stacked)
    hidden = down.axes[2 if transposed else 1]
    # What the others read is what the projection down gives.
    return {
        bound.name: transposed if bound is down else bound.axes[1] == hidden and bound.axes[2] != hidden
        for bound in stacked
    }


def stored_matrices(binding: Binding, matrices: Collection[Matrix]) -> tuple[Matrix, ...]:
    """Return the same matrices as the files hold them: experts can be stored one by one.

    Args:
        binding: The model.
        matrices: The matrices of the loaded model.
    """
    alone = {matrix.name: matrix.kind for matrix in matrices if not matrix.is_stacked}
    stacked: dict[int, list[Matrix]] = {}
    for matrix in matrices:
        if matrix.is_stacked:
            stacked.setdefault(matrix.layer, []).append(matrix)
    found = []
    for layer in range(binding.sizes["layers"]):
        tensors = binding.layer_tensors(layer)
        for bound in tensors:
            if bound.parameter in alone:
                found.append(Matrix(bound.name, alone[bound.parameter], bound, bound.transposed))
        if layer in stacked:
            found += _stored_experts(tensors, stacked[layer])
    return tuple(found)


def _stored_experts(tensors: Sequence[BoundTensor], loaded: Sequence[Matrix]) -> list[Matrix]:
    down, down_transposed = down_projection([matrix.bound for matrix in loaded])
    kinds = {matrix.bound is down: matrix.kind for matrix in loaded}
    hidden = down.axes[2 if down_transposed else 1]
    single = [bound for bound in tensors if bound.expert is not None and len(bound.axes) == 2]
    if single:
        # What goes down has the hidden size as its rows, whichever way it is stored.
        return [
            Matrix(each.name, kinds[each.axes[1 if each.transposed else 0] == hidden], each, each.transposed)
            for each in single
        ]
    whole = [bound for bound in tensors if len(bound.axes) == 3 and bound.axes[0] == down.axes[0]]
    layouts, (last, _) = _layouts(whole), down_projection(whole)
    return [Matrix(each.name, kinds[each is last], each, layouts[each.name]) for each in whole]


def parameters_of(binding: Binding, kinds: Collection[str]) -> tuple[str, ...]:
    """Return the parameters of a loaded model that are of some kinds.

    Args:
        binding: The model.
        kinds: Names within a layer, as `kind_of` gives them.
    """
    return tuple(
        name for name, bound in binding.in_memory.items() if bound.layer is not None and kind_of(bound) in kinds
    )


def check_widths(matrices: Sequence[Matrix], pattern: Pattern, text: str, sizes: Mapping[str, int]) -> None:
    """Check that every matrix can hold a pattern.

    Args:
        matrices: The matrices.
        pattern: The pattern.
        text: Its name.
        sizes: The sizes of the model.

    Raises:
        RequestError: There are no matrices.
        ShapeError: Rows of one cannot be divided into groups.
    """
    if not matrices:
        raise RequestError(f"sparsity {text} needs linear layers, and the layers of this model have none")
    for matrix in matrices:
        columns = matrix.columns(sizes)
        if pattern.group and columns % pattern.group:
            axis = matrix.bound.axes[-2 if matrix.transposed else -1]
            factors = {factor for section in axis for factor in section.factors}
            low = columns // pattern.group * pattern.group
            near = " or ".join(f"{width:,}" for width in (low, low + pattern.group) if width)
            hint = f"an intermediate_size of {near} would fit; or use" if "ffn" in factors else "use"
            raise ShapeError(
                f"sparsity {text} needs rows that are multiples of {pattern.group}, and those of {matrix.kind} have "
                f"{columns:,} weights; {hint} a share such as {pattern.share:.0%}, which takes any width"
            )
