"""Setting weights to zero from the first layer to the last, each on what the sparse layers before it give."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch

from ..architectures.axes import layer_module
from ..architectures.binding import Binding
from ..core.paging import kept
from ..core.progress import progress_bar
from ..modeling.error_carry import error_carry
from ..modeling.layerwise import enter_layers, run_layer
from ..report.sparsity import Pattern
from .choosing import choose_zeros, magnitude_scores, wanda_scores
from .closed_form import lost_energy, sparse_weight
from .inputs import expert_parts, in_order, sum_inputs
from .matrices import Matrix

Weights = Mapping[str, torch.Tensor]


@torch.no_grad()
def zero_by_magnitude(matrices: Sequence[Matrix], weights: Weights, pattern: Pattern) -> None:
    """Set the smallest weights to zero, in place. A share is one of each matrix.

    Args:
        matrices: The matrices.
        weights: Their values by name.
        pattern: The pattern.
    """
    for matrix in matrices:
        for values in _each(matrix, weights[matrix.name]):
            scores = magnitude_scores(values.float())
            values.masked_fill_(choose_zeros(scores, pattern, across_rows=True), 0)


@torch.no_grad()
def zero_by_text(
    model: Any,
    binding: Binding,
    matrices: Sequence[Matrix],
    weights: Weights,
    pattern: Pattern,
    criterion: str,
    windows: torch.Tensor,
    *,
    batch_size: int = 4,
) -> dict[str, float]:
    """Set weights to zero by what they multiply on the calibration text, in place.

    Layer by layer, and within a layer in the order of computation, so that each matrix is changed on what the already
    sparse ones before it give. In memory at once, besides the model: the hidden states of all windows, and the sums of
    one group of matrices that read the same.

    Args:
        model: The model that runs; its matrices are replaced.
        binding: Its binding.
        matrices: The matrices.
        weights: Their values by name, in the dtype of the files; they are replaced. Can be the model's own.
        pattern: The pattern.
        criterion: `sparsegpt` or `wanda`.
        windows: Calibration windows, token ids, shape (windows, length).
        batch_size: Windows run at once.

    Returns:
        For `sparsegpt`, by kind of matrix, the mean share of the outputs' energy that the change makes up.

    Raises:
        DataError: A matrix reads no token of the text.
        NotFiniteError: What it reads is not finite.
        RequestError: The layers cannot be run one by one.
    """
    states, calls = enter_layers(model, binding, torch.split(windows, batch_size))
    errors: dict[str, list[float]] = {}
    whole = criterion == "sparsegpt"
    layers = binding.sizes["layers"]
    with progress_bar(f"sparsity by {criterion}", layers) as advance:
        for layer in range(layers):
            module = model.get_submodule(layer_module(binding, layer))
            runs: list[Callable[[], torch.Tensor]] = [
                partial(run_layer, module, hidden, calls[layer][len(hidden)]) for hidden in states
            ]
            own = [matrix for matrix in matrices if matrix.layer == layer]
            for group in in_order(model, own, runs[0]) if own else ():
                for experts in expert_parts(model, group, whole=whole):
                    sums = sum_inputs(model, group, runs, experts, whole=whole)
                    for expert, each in zip(experts, sums, strict=True):
                        known = each.checked(_name(group.first, expert))
                        shared = [_each(matrix, weights[matrix.name])[expert] for matrix in group.matrices]
                        lost = _change(shared, known, pattern, whole=whole)
                        for matrix, share in zip(group.matrices, lost, strict=True):
                            errors.setdefault(matrix.kind, []).append(share)
                for matrix in group.matrices:
                    model.get_parameter(matrix.name).copy_(weights[matrix.name])
            states = kept(model, (run() for run in runs))
            advance(1)
    return {kind: fmean(values) for kind, values in errors.items()} if whole else {}


def _change(matrices: Sequence[torch.Tensor], sums: torch.Tensor, pattern: Pattern, *, whole: bool) -> list[float]:
    """Set weights of matrices that read the same to zero, each shape (out, in), and return what each change costs.

    By their inputs' squares alone, the cost is not known: it is NaN.
    """
    known = sums if sums.is_cuda else sums.cpu()  # other devices do not solve in float64
    carry = error_carry(known, known.device) if whole else None
    lost = []
    for own in matrices:
        weight = own.float().to(known.device)
        if carry is None:
            removed = choose_zeros(wanda_scores(weight, known), pattern, across_rows=False)
            own.masked_fill_(removed.to(own.device), 0)
            lost.append(math.nan)
            continue
        new, _ = sparse_weight(weight, carry, pattern)
        lost.append(lost_energy(weight, new, known))
        # A weight that the file's dtype rounds to zero is one zero more; no zero becomes another value.
        own.copy_(new)
    return lost


def _name(matrix: Matrix, expert: int) -> str:
    return f"expert {expert} of {matrix.name}" if matrix.is_stacked else matrix.name


def _each(matrix: Matrix, values: torch.Tensor) -> list[torch.Tensor]:
    """Return the matrix, or that of each expert, as (out, in): views."""
    by_rows = matrix.by_rows(values)
    return list(by_rows) if matrix.is_stacked else [by_rows]
