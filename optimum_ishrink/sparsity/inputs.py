"""What the matrices of one layer read on the calibration text, and which of them read the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core.finite import ADVICE, kind_of
from ..errors import DataError, NotFiniteError, RequestError
from ..modeling.experts import DownProjections, one_by_one
from .matrices import Matrix

MOST_BYTES = 2 << 30
"""Sums that are held at a time. Where those of all experts of a layer take more, the layer runs again for the next."""


class InputSums:
    """Sums over what a matrix reads, float32.

    Args:
        whole: Whether all second moments are summed; else only the squares.
    """

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.tokens = 0
        self.values: torch.Tensor | None = None
        """Second moments of shape (in, in), or squares of shape (in,); None until tokens are added."""

    def add(self, inputs: torch.Tensor) -> None:
        """Add tokens, shape (..., in)."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        if not len(rows):
            return
        self.tokens += len(rows)
        if self.values is None:
            width = rows.shape[1]
            self.values = rows.new_zeros((width, width) if self.whole else (width,))
        if self.whole:
            self.values.addmm_(rows.T, rows)
        else:
            self.values += rows.square().sum(dim=0)

    def checked(self, name: str) -> torch.Tensor:
        """Return the sums.

        Args:
            name: What the matrix is called in messages.

        Raises:
            DataError: It read no token.
            NotFiniteError: What it reads is not finite, or its squares are not.
        """
        if self.values is None:
            raise DataError(
                f"{name} reads no token of the calibration text, which then does not say which of its weights count; "
                "calibrate on more text or on more kinds of it, or choose zeros with --sparsity-criterion magnitude"
            )
        if (kind := kind_of(self.values)) is not None:
            raise NotFiniteError(f"what {name} reads on the calibration text is not finite ({kind}); {ADVICE}")
        return self.values


class _Enough(Exception):
    """Ends a forward pass through a layer once what is observed has been read."""


@dataclass
class Shared:
    """Matrices of one layer that read the same.

    Args:
        matrices: The matrices; what the first one reads is observed.
    """

    matrices: list[Matrix] = field(default_factory=list)

    @property
    def first(self) -> Matrix:
        """The one that is observed."""
        return self.matrices[0]


def in_order(model: Any, matrices: Sequence[Matrix], run: Callable[[], object]) -> list[Shared]:
    """Return the matrices of a layer in the order in which they are read, those together that read the same.

    Args:
        model: The model.
        matrices: The matrices.
        run: Runs the layer on a batch.

    Returns:
        Those that are not read in this batch come last, each by itself.
    """
    groups: list[Shared] = []
    last: list[Any] = [None]

    def note(matrix: Matrix, inputs: torch.Tensor) -> None:
        if any(matrix in group.matrices for group in groups):
            return
        if matrix.is_stacked or inputs is not last[0]:
            groups.append(Shared())
        groups[-1].matrices.append(matrix)
        last[0] = None if matrix.is_stacked else inputs

    with _observed(model, matrices, lambda matrix, _, inputs: note(matrix, inputs)):
        run()
    read = [matrix for group in groups for matrix in group.matrices]
    return groups + [Shared([matrix]) for matrix in matrices if matrix not in read]


def expert_parts(model: Any, group: Shared, *, whole: bool) -> list[range]:
    """Return the experts whose sums are held at a time; a group of ordinary matrices is like one expert.

    Args:
        model: The model.
        group: The group.
        whole: Whether all second moments are summed; else only the squares.
    """
    first = group.first
    if not first.is_stacked:
        return [range(1)]
    weight = first.by_rows(model.get_parameter(first.name))
    count, width = len(weight), weight.shape[-1]
    size = max(1, MOST_BYTES // (4 * width * (width if whole else 1)))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def sum_inputs(
    model: Any, group: Shared, runs: Sequence[Callable[[], object]], experts: range, *, whole: bool
) -> tuple[InputSums, ...]:
    """Return the sums of what the matrices of a group read.

    Args:
        model: The model.
        group: The group.
        runs: Run the layer, each on one batch.
        experts: The experts to sum for, one of `expert_parts`.
        whole: Whether all second moments are summed; else only the squares.

    Returns:
        One for the group; for the matrices of experts in one tensor, one for each expert.

    Raises:
        RequestError: What experts read cannot be observed.
    """
    first = group.first
    sums = {expert: InputSums(whole) for expert in experts}
    seen = False

    def add(_: Matrix, expert: int, inputs: torch.Tensor) -> None:
        nonlocal seen
        seen = True
        if expert in sums:
            sums[expert].add(inputs)
        if not first.is_stacked:
            raise _Enough

    with _observed(model, [first], add):
        for run in runs:
            try:
                run()
            except _Enough:
                continue
    if first.is_stacked and not seen:
        raise RequestError(
            f"the experts in {first.name} are not run in matrix products of one expert each, so that what they read "
            "cannot be observed; use --sparsity-criterion magnitude"
        )
    return tuple(sums.values())


@contextmanager
def _observed(
    model: Any, matrices: Sequence[Matrix], read: Callable[[Matrix, int, torch.Tensor], None]
) -> Iterator[None]:
    """Call a function with what matrices read: the matrix, the expert or 0, and the inputs."""
    handles = []
    stacked: Mapping[int, Matrix] = dict(enumerate(matrix for matrix in matrices if matrix.is_stacked))
    for matrix in matrices:
        if not matrix.is_stacked:

            def hook(_: Any, inputs: tuple[torch.Tensor, ...], matrix: Matrix = matrix) -> None:
                read(matrix, 0, inputs[0])

            module = model.get_submodule(matrix.name.rpartition(".")[0])
            handles.append(module.register_forward_pre_hook(hook))
    try:
        if not stacked:
            yield
            return
        weights = {number: model.get_parameter(matrix.name) for number, matrix in stacked.items()}
        products = DownProjections(weights, lambda number, expert, inputs: read(stacked[number], expert, inputs))
        with one_by_one(model), products:
            yield
    finally:
        for handle in handles:
            handle.remove()
