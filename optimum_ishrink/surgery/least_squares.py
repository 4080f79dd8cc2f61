"""Ridge regression from sums over tokens, with the ridge chosen on held-out text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..core.finite import ADVICE, kind_of
from ..core.processes import summed, summed_count
from ..core.spool import put_away
from ..errors import DataError, NotFiniteError

RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridges to choose from, in units of the Gram matrix's diagonal."""

_START = 0.1
_BLOCKS = 2
EVERY = 4
"""Ridges are compared on every fourth output: each output is a separate regression on the same inputs."""
_ROUNDING = 1e-6
"""Share of the target's energy below which two float32 errors are the same."""


def solve_ridge(
    gram: torch.Tensor,
    cross: torch.Tensor,
    weight: torch.Tensor,
    ridge: float,
    *,
    dtype: torch.dtype = torch.float64,
    consume: bool = False,
) -> torch.Tensor:
    """Return the weight that minimises `||X W'^T - Y||^2 + ridge * sum_c G_cc ||W'_c - W_c||^2`, with `G = X^T X`.

    `W' = W + (Y^T X - W G) (G + ridge diag(G))^-1`. The ridge pulls towards the weight as it was cut, not
    towards zero: where the calibration text has no data in a direction, the trained weight is retained. It weighs each
    input channel by its own energy, so that a few channels with massive activations do not set it for all others.

    Source: FASP, arXiv:2501.09412, eq. 8, and SlimGPT, arXiv:2412.18110, with another centre and another scale of the
    ridge.

    Args:
        gram: `X^T X`, shape (in, in).
        cross: `Y^T X`, shape (out, in).
        weight: The weight as it was cut, shape (out, in).
        ridge: Strength, relative to the Gram matrix's diagonal.
        dtype: Dtype to solve in: float64 for a weight that is stored; float32 is enough to compare ridges.
        consume: Whether the Gram matrix may be overwritten, where it has that dtype already: it is large.

    Returns:
        In `dtype`, shape (out, in).

    Raises:
        DataError: The Gram matrix is not finite, or too singular even for this ridge.
    """
    check_finite(gram, cross)
    system = gram.to(dtype, copy=not consume)  # the only matrix of this size that is made; its diagonal grows below
    gap = cross.to(dtype) - weight.to(dtype) @ system
    system.diagonal().add_(ridge * ridge_scale(system.diagonal(), dtype))
    factor, info = torch.linalg.cholesky_ex(system)
    del system, gram
    if info.item():
        raise too_uniform(ridge)
    return weight.to(dtype) + torch.cholesky_solve(gap.T, factor).T


def ridge_scale(energy: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what a ridge of 1 adds to the diagonal of the Gram matrix.

    Args:
        energy: That diagonal, `sum x^2` of each input, shape (in,).
        dtype: Dtype of the result.
    """
    # A channel without energy has nothing to fit; the floor prevents a row of zeros.
    return energy.clamp_min(float(energy.mean()) * 1e-6 + torch.finfo(dtype).tiny).to(dtype)


def too_uniform(ridge: float) -> DataError:
    """Return the error for a system that is singular in spite of its ridge."""
    return DataError(f"the calibration text is too uniform to solve with a ridge of {ridge}; give more text")


def check_finite(*sums: torch.Tensor) -> None:
    """Raise a `NotFiniteError` unless all values are finite."""
    if (kind := kind_of(*sums)) is not None:
        raise NotFiniteError(f"the activations are not finite ({kind}); {ADVICE}")


def restrict_rank(update: torch.Tensor, gram: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the map of a given rank that is nearest to an update on the calibration inputs.

    With `D` the update and `G = X^T X`, `U U^T D` minimises `||X (D' - D)^T||` over maps of rank r, where `U` holds
    the top r eigenvectors of `D G D^T`.

    Source: EoRA, arXiv:2410.21271, section 3.2: the singular vectors of the error in the eigenspace of the inputs.

    Args:
        update: Shape (out, in).
        gram: `X^T X`, shape (in, in).
        rank: The rank.
    """
    outputs = update @ gram.to(update.dtype) @ update.T
    vectors: torch.Tensor = torch.linalg.eigh((outputs + outputs.T) / 2).eigenvectors[:, -rank:]
    return vectors @ (vectors.T @ update)


@dataclass
class Moments:
    """Sums over tokens that least squares needs, float32 on the model's device.

    Args:
        gram: `X^T X`; only its upper triangle while tokens are added, see `mirrored`.
        cross: `Y^T X`.
        energy: `sum y^2` of each output, float64, shape (out,).
        tokens: Number of tokens.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    energy: torch.Tensor
    tokens: int = 0

    @classmethod
    def zeros(cls, weight: torch.Tensor, make: Callable[..., torch.Tensor] | None = None) -> Moments:
        """Return empty sums for a weight.

        Args:
            weight: Shape (out, in).
            make: Makes the large ones from their sizes; None makes them on the weight's device.
        """
        width = weight.shape[1]
        make = make or partial(torch.zeros, dtype=torch.float32, device=weight.device)
        energy = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        return cls(make(width, width), make(*weight.shape), energy)

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add tokens: inputs of shape (tokens, in) and targets of shape (tokens, out)."""
        inputs, targets = inputs.float(), targets.float()
        width = inputs.shape[1]
        # The matrix is symmetric: in blocks of rows from the diagonal on, it takes 3/4 of the multiplications.
        for block in range(_BLOCKS):
            start, stop = width * block // _BLOCKS, width * (block + 1) // _BLOCKS
            self.gram[start:stop, start:].addmm_(inputs[:, start:stop].T, inputs[:, start:])
        self.cross.addmm_(targets.T, inputs)
        self.energy += targets.square().sum(dim=0, dtype=torch.float64)
        self.tokens += len(inputs)

    def mirrored(self) -> Moments:
        """Return the sums with the whole Gram matrix; it reuses the memory."""
        upper = self.gram.triu_()
        lower = upper.triu(1).T
        return Moments(upper.add_(lower), self.cross, self.energy, self.tokens)

    def share(self) -> None:
        """Add the sums of all processes, which all have to call it."""
        for sums in (self.gram, self.cross, self.energy):
            summed(sums)
        self.tokens = summed_count(self.tokens, self.gram.device)

    def put_away(self) -> None:
        """Let the memory of the large sums go until they are used again, where they are mapped to a file."""
        put_away(self.gram, self.cross)

    def of_outputs(self, rows: slice) -> Moments:
        """Return the sums of some outputs alone; the Gram matrix is shared."""
        return Moments(self.gram, self.cross[rows], self.energy[rows], self.tokens)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.gram + other.gram,
            self.cross + other.cross,
            self.energy + other.energy,
            self.tokens + other.tokens,
        )

    def __sub__(self, other: Moments) -> Moments:
        return Moments(
            self.gram - other.gram,
            self.cross - other.cross,
            self.energy - other.energy,
            self.tokens - other.tokens,
        )

    def error(self, weight: torch.Tensor) -> float:
        """Return the share of the targets' energy that a weight leaves unexplained."""
        w = weight.float()
        fit = (w @ self.gram).mul_(w).sum(dtype=torch.float64) - 2 * (w * self.cross).sum(dtype=torch.float64)
        energy = self.energy.sum()
        return float((fit + energy) / energy.clamp_min(1e-30))


def choose_repair(
    folds: list[Moments], weight: torch.Tensor, start: float | None = None, rank: int | None = None
) -> tuple[torch.Tensor, float | None, float, float]:
    """Return the weight with the ridge that is best on held-out text; the cut weight itself is a candidate.

    Every fold is held out in turn and the weight is fitted on the others; then it is fitted on all of them with the
    ridge of the lowest mean error. With fewer tokens than inputs least squares has no unique solution, so the
    smallest ridges are not tried: see `least_ridge`.

    Args:
        folds: Sums over parts of the calibration text, at least two. The list is emptied once the ridge is chosen:
            the final solve needs only their sum, and in float64 as much memory as they take.
        weight: The weight as it was cut, shape (out, in).
        start: Ridge to try first, such as the best of the layer below.
        rank: Maximum rank of the weight's change; None sets no limit.

    Returns:
        The weight, float64, shape (out, in); the ridge, None when the cut weight was better than all; the mean
        unexplained share of the target's energy on held-out folds, as it was cut and with the new weight.

    Raises:
        DataError: The sums are not finite.
    """
    for place, fold in enumerate(folds):
        folds[place] = fold.mirrored()
        fold.put_away()
    total = folds[0]
    for fold in folds[1:]:
        total = total + fold
        fold.put_away()
    folds[0].put_away()
    rows = slice(None, None, EVERY if rank is None else 1)
    some = [fold.of_outputs(rows) for fold in folds]
    some_weight, some_total = weight[rows], total.of_outputs(rows)
    before = sum(fold.error(some_weight) for fold in some) / len(some)
    for fold in some:
        fold.put_away()
    check_finite(total.gram, total.cross)

    def solve(sums: Moments, cut: torch.Tensor, ridge: float, dtype: torch.dtype) -> torch.Tensor:
        consume = rank is None and dtype == torch.float32  # sums that are only compared with are made for it alone
        solved = solve_ridge(sums.gram, sums.cross, cut, ridge, dtype=dtype, consume=consume)
        if rank is None:
            return solved
        start_weight = cut.to(dtype)
        return start_weight + restrict_rank(solved - start_weight, sums.gram, rank)

    def held_out_error(ridge: float) -> float:
        errors = []
        for fold in some:
            try:
                others = some_total - fold
                fold.put_away()
                errors.append(fold.error(solve(others, some_weight, ridge, torch.float32)))
            except DataError:
                return float("inf")  # too singular in float32 for so small a ridge
            finally:
                fold.put_away()
        return sum(errors) / len(errors)

    ridge, after = choose_ridge(weight.shape[1], total.tokens, start, before, held_out_error)
    folds.clear()
    some.clear()
    if ridge is None:
        return weight.double(), None, before, before
    return solve(total, weight, ridge, torch.float64), ridge, before, after


def choose_ridge(
    width: int, tokens: int, start: float | None, before: float, held_out_error: Callable[[float], float]
) -> tuple[float | None, float]:
    """Return the ridge of the lowest error on held-out text, and that error; None where the cut weight is as good.

    Args:
        width: Inputs of the projection.
        tokens: Tokens to fit on.
        start: Ridge to try first; None for the usual one.
        before: The error of the weight as it was cut.
        held_out_error: Returns the error of a ridge.
    """
    allowed = [ridge for ridge in RIDGES if ridge >= least_ridge(width, tokens)] or [RIDGES[-1]]
    ridge, after = descend(allowed, held_out_error, _START if start is None else start)
    return (ridge, after) if after < before - _ROUNDING else (None, before)


def least_ridge(width: int, tokens: int) -> float:
    """Return the smallest ridge to try: it grows when there are fewer tokens than inputs.

    Args:
        width: Inputs of the projection.
        tokens: Tokens to fit on.
    """
    return RIDGES[0] if tokens >= width else 0.1 * width / max(tokens, 1)


def descend(values: Sequence[float], cost: Callable[[float], float], start: float) -> tuple[float, float]:
    """Return the value with the lowest cost, walking downhill over ordered values, and its cost.

    Args:
        values: Ascending.
        cost: Evaluated at most once per value, and only for values on the way.
        start: Where to begin; the search starts at the nearest of `values`.
    """
    known: dict[int, float] = {}

    def at(index: int) -> float:
        if index not in known:
            known[index] = cost(values[index])
        return known[index]

    place = min(range(len(values)), key=lambda index: abs(values[index] - start))
    while True:
        near = [index for index in (place - 1, place + 1) if 0 <= index < len(values) and at(index) < at(place)]
        if not near:
            return values[place], at(place)
        place = min(near, key=at)
