"""The ridge regression of `least_squares` where there are fewer tokens than inputs: a system as large as the tokens.

With `E` the diagonal that scales the ridge and `R = Y - X W^T` what the weight as it was cut leaves of the targets,

    W' = W + (Y^T X - W G) (G + ridge E)^-1 = W + R^T (X E^-1 X^T + ridge)^-1 X E^-1.

The left side factors a matrix of inputs for each ridge and fold; the right side one of tokens, and one product
`X E^-1 X^T` of a fold serves all ridges. Where tokens are few, that takes fewer operations and less memory; the
solution is the same but for rounding.

Source: ridge regression in dual variables, Saunders, Gammerman and Vovk, 1998, with the centre and the scale of
`solve_ridge`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch

from ..core.processes import broadcast, from_main_process, is_main_process, process_count
from ..core.spool import put_away
from .least_squares import EVERY, Moments, check_finite, choose_repair, choose_ridge, ridge_scale, too_uniform

_COLUMNS = 1024
"""Inputs that are converted to the dtype of a product at once."""


@dataclass
class Rows:
    """Tokens of one part of the calibration text.

    Args:
        inputs: What enters the projection, batches of shape (tokens, in), as the model gives them.
        targets: What it should give, float32, batches of shape (tokens, out).
    """

    inputs: list[torch.Tensor] = field(default_factory=list)
    targets: list[torch.Tensor] = field(default_factory=list)

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add tokens: inputs of shape (tokens, in) and targets of shape (tokens, out)."""
        self.inputs.append(inputs)
        self.targets.append(targets.float())

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(map(len, self.inputs))

    def put_away(self) -> None:
        """Keep them: they are small."""


Make = Callable[..., torch.Tensor]
"""Makes a float32 matrix of zeros from its sizes."""


def are_few(tokens: int, width: int) -> bool:
    """Whether the tokens themselves are less work than their sums: the last solve, in float64, sets the limit.

    Args:
        tokens: Tokens to fit on.
        width: Inputs of the projection.
    """
    return 4 * tokens <= 3 * width


def empty_folds(
    weight: torch.Tensor,
    folds: int,
    tokens: int,
    rank: int | None,
    make: Make | None = None,
    *,
    shared: bool = False,
) -> list[Moments] | list[Rows]:
    """Return what each fold of the text is added to: rows where tokens are few, else sums.

    Args:
        weight: The weight as it was cut, shape (out, in).
        folds: Number of folds.
        tokens: Tokens that will be added, in all folds.
        rank: Maximum rank of the weight's change; a limit needs the sums.
        make: Makes the large sums; None makes them on the weight's device.
        shared: Whether several processes have parts of the text, which takes sums.
    """
    if rank is None and not (shared and process_count() > 1) and are_few(tokens, weight.shape[1]):
        return [Rows() for _ in range(folds)]
    return [Moments.zeros(weight, make) for _ in range(folds)]


def choose_weight(
    folds: list[Moments] | list[Rows],
    weight: torch.Tensor,
    start: float | None = None,
    rank: int | None = None,
    make: Make | None = None,
    *,
    shared: bool = False,
) -> tuple[torch.Tensor, float | None, float, float]:
    """Return what `choose_repair` returns, for folds of either kind.

    Args:
        folds: What `empty_folds` returned, with text. The list is emptied.
        weight: The weight as it was cut, shape (out, in).
        start: Ridge to try first, such as the best of the layer below.
        rank: Maximum rank of the weight's change; None sets no limit.
        make: Makes the products of tokens; None makes them on the weight's device.
        shared: Whether several processes have parts of the text: all of them call this, and one solves.

    Raises:
        DataError: The activations are not finite, or too uniform.
    """
    sums = [fold for fold in folds if isinstance(fold, Moments)]
    rows = [fold for fold in folds if isinstance(fold, Rows)]
    folds.clear()
    if rows:
        return choose_repair_by_rows(rows, weight, start, make)
    if not shared:
        return choose_repair(sums, weight, start, rank)
    for fold in sums:
        fold.share()
    found = choose_repair(sums, weight, start, rank) if is_main_process() else None
    ridge, error, new_error = from_main_process(None if found is None else found[1:])
    solved = weight.to(torch.float64, memory_format=torch.contiguous_format, copy=True) if found is None else found[0]
    return broadcast(solved.contiguous()), ridge, error, new_error


def choose_repair_by_rows(
    folds: list[Rows], weight: torch.Tensor, start: float | None = None, make: Make | None = None
) -> tuple[torch.Tensor, float | None, float, float]:
    """Return what `choose_repair` returns for the sums over these rows.

    Args:
        folds: The parts of the calibration text, at least two. The list is emptied.
        weight: The weight as it was cut, shape (out, in).
        start: Ridge to try first.
        make: Makes the products of tokens; None makes them on the weight's device.

    Raises:
        DataError: The activations are not finite, or too uniform.
    """
    make = make or partial(torch.zeros, dtype=torch.float32, device=weight.device)
    place = torch.cat([torch.full((fold.tokens,), number) for number, fold in enumerate(folds)]).to(weight.device)
    parts = range(len(folds))
    inputs = torch.cat([batch for fold in folds for batch in fold.inputs])
    left = torch.cat([batch for fold in folds for batch in fold.targets])
    folds.clear()
    check_finite(inputs, left)
    wanted = [_energy(left[place == part, ::EVERY]) for part in parts]
    for columns in _blocks(inputs):
        left.addmm_(inputs[:, columns].float(), weight[:, columns].float().T, alpha=-1)
    some = left[:, ::EVERY].contiguous()
    energies = torch.stack([_input_energy(inputs[place == part]) for part in parts])
    energy = energies.sum(dim=0)
    before = sum(_share(some[place == part], wanted[part]) for part in parts) / len(parts)
    products = [
        _Products.of(inputs, place == part, ridge_scale(energy - energies[part], torch.float32), make)
        for part in parts
    ]

    def held_out_error(ridge: float) -> float:
        errors = []
        for part, product in enumerate(products):
            held_out = place == part
            change = product.predicted(some[~held_out], ridge)
            if change is None:
                return float("inf")  # too singular in float32 for so small a ridge
            errors.append(_share(some[held_out] - change, wanted[part]))
        return sum(errors) / len(errors)

    ridge, after = choose_ridge(weight.shape[1], len(inputs), start, before, held_out_error)
    products.clear()
    if ridge is None:
        return weight.double(), None, before, before
    return solve_by_rows(inputs, left, weight, ridge, energy), ridge, before, after


@dataclass(frozen=True)
class _Products:
    """`X E^-1 X^T` of a fold that is held out.

    Args:
        others: Among the tokens that are fitted on; only the lower triangle.
        held_out: Of the tokens held out with these.
    """

    others: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def of(cls, inputs: torch.Tensor, held_out: torch.Tensor, scale: torch.Tensor, make: Make) -> _Products:
        """Multiply.

        Args:
            inputs: `X`, shape (tokens, in).
            held_out: Which tokens are held out, shape (tokens,).
            scale: `E`, float32, shape (in,).
            make: Makes the matrices.
        """
        count = int(held_out.sum())
        fitted = len(inputs) - count
        found = cls(make(fitted, fitted), make(count, fitted))
        for columns in _blocks(inputs):
            scaled = inputs[:, columns].float() / scale[columns].sqrt()
            others = scaled[~held_out]
            _add_lower(found.others, others)
            found.held_out.addmm_(scaled[held_out], others.T)
        put_away(found.others, found.held_out)
        return found

    def predicted(self, left: torch.Tensor, ridge: float) -> torch.Tensor | None:
        """Return what the change of the weight adds to the outputs that are held out; None where it has no solution.

        Args:
            left: What the weight as it was cut leaves of the other tokens' targets, shape (tokens, out).
            ridge: Strength.
        """
        system = self.others.clone()
        system.diagonal().add_(ridge)
        factor, info = torch.linalg.cholesky_ex(system)
        del system
        found = None if info.item() else self.held_out @ torch.cholesky_solve(left, factor)
        put_away(self.others, self.held_out)
        return found


def solve_by_rows(
    inputs: torch.Tensor, left: torch.Tensor, weight: torch.Tensor, ridge: float, energy: torch.Tensor
) -> torch.Tensor:
    """Return the weight of the module's docstring, float64.

    Args:
        inputs: `X`, shape (tokens, in).
        left: `R`, shape (tokens, out).
        weight: `W`, shape (out, in).
        ridge: Strength.
        energy: `sum x^2` of each input, shape (in,).

    Raises:
        DataError: The tokens are too uniform even for this ridge.
    """
    scale = ridge_scale(energy, torch.float64)
    system = left.new_zeros(len(inputs), len(inputs), dtype=torch.float64)
    for columns in _blocks(inputs):
        _add_lower(system, inputs[:, columns].double() / scale[columns].sqrt())
    system.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(system)
    del system
    if info.item():
        raise too_uniform(ridge)
    dual = torch.cholesky_solve(left.double(), factor).T
    found = weight.to(torch.float64, copy=True)
    for columns in _blocks(inputs):
        found[:, columns].addmm_(dual, inputs[:, columns].double() / scale[columns])
    return found


def _blocks(inputs: torch.Tensor) -> Iterator[slice]:
    """Yield the columns of a matrix in blocks."""
    return (slice(start, start + _COLUMNS) for start in range(0, inputs.shape[1], _COLUMNS))


def _add_lower(product: torch.Tensor, rows: torch.Tensor) -> None:
    """Add the lower triangle of `rows rows^T`, and a part of the upper: 3/4 of the multiplications."""
    middle = len(rows) // 2
    for start, stop in ((0, middle), (middle, len(rows))):
        product[start:, start:stop].addmm_(rows[start:], rows[start:stop].T)


def _input_energy(inputs: torch.Tensor) -> torch.Tensor:
    """Return `sum x^2` of each input, float64."""
    return torch.cat([inputs[:, columns].double().square().sum(dim=0) for columns in _blocks(inputs)])


def _energy(values: torch.Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))


def _share(left: torch.Tensor, wanted: float) -> float:
    """Return the share of the targets' energy that is left."""
    return _energy(left) / max(wanted, 1e-30)
